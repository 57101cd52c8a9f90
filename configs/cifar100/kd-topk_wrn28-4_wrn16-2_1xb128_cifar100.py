# Tang et al.: KD, of which a quarter of the classes is kept, the best part according to the paper.
# The pair is setting c's; temperature, weight and what the kind is given are ours.
_base_ = [
    './wrn16-2_1xb128_cifar100.py',
    '../_base_/models/wrn28-4_cifar100.py',
    '../_base_/taps/wrn.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model=_base_.wrn28_4,
        checkpoint='work_dirs/wrn28-4_1xb128_cifar100/epoch_200.pth',
    ),
    taps=_base_.wrn_taps,
    terms=dict(
        loss_kd=dict(
            loss=dict(type='lckd_mm.PartialKDLoss', tau=4.0, kind='topk', k=0.25),
            on='logits',
            weight=1.0,
        ),
    ),
)
custom_hooks = [dict(type='lckd_mm.GradientRescaleHook', term='loss_kd')]
