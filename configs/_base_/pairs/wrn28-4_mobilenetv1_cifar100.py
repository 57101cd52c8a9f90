# Setting g: wrn28-4 teaches mobilenetv1.
_base_ = [
    '../../cifar100/mobilenetv1_1xb128_cifar100.py',
    '../models/wrn28-4_cifar100.py',
    '../taps/wrn.py',
    '../taps/mobilenetv1.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.wrn28_4, checkpoint='work_dirs/wrn28-4_1xb128_cifar100/epoch_200.pth'),
    student_taps=_base_.mobilenetv1_taps,
    teacher_taps=_base_.wrn_taps,
)
