# Setting f: pyramidnet200-240 teaches pyramidnet110-84.
_base_ = [
    '../../cifar100/pyramidnet110-84_1xb64_cifar100.py',
    '../models/pyramidnet200-240_cifar100.py',
    '../taps/pyramidnet.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.pyramidnet200_240, checkpoint='work_dirs/pyramidnet200-240_1xb64_cifar100/epoch_200.pth'),
    student_taps=_base_.pyramidnet_taps,
    teacher_taps=_base_.pyramidnet_bottleneck_taps,
)
