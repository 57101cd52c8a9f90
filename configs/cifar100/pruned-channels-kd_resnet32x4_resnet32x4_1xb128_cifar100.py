# Blakeney et al.: the same, taught by the unpruned net (KD). Temperature and weight are ours.
_base_ = [
    './pruned-channels_resnet32x4_1xb128_cifar100.py',
    '../_base_/terms/cifar100.py',
    '../_base_/taps/cifar_resnet.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model=_base_.model,
        checkpoint='work_dirs/resnet32x4_1xb128_cifar100/epoch_200.pth',
    ),
    taps=_base_.cifar_resnet_taps,
    terms=dict(
        loss_kd=_base_.kd_term,
    ),
)
val_evaluator = [
    _base_.val_evaluator,
    dict(type='lckd_mm.ClassBiasMetric', reference='teacher', convention='2021'),
]
custom_hooks = [*_base_.custom_hooks, dict(type='lckd_mm.TeacherReferenceHook')]
