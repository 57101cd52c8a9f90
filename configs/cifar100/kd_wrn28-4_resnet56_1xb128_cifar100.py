# Setting d, KD: wrn28-4 teaches resnet56. Temperature and weight are ours; the papers give none.
_base_ = [
    './resnet56_1xb128_cifar100.py',
    '../_base_/models/wrn28-4_cifar100.py',
    '../_base_/terms/cifar100.py',
    '../_base_/taps/wrn.py',
    '../_base_/taps/cifar_resnet.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model=_base_.wrn28_4,
        checkpoint='work_dirs/wrn28-4_1xb128_cifar100/epoch_200.pth',
    ),
    student_taps=_base_.cifar_resnet_taps,
    teacher_taps=_base_.wrn_taps,
    terms=dict(
        loss_kd=_base_.kd_term,
    ),
)
