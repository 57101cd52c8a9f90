# Setting e, OFD: pyramidnet200-240 teaches wrn28-4, on batch statistics as the authors run it.
_base_ = [
    './wrn28-4_1xb64_cifar100.py',
    '../_base_/models/pyramidnet200-240_cifar100.py',
    '../_base_/terms/cifar100.py',
    '../_base_/taps/pyramidnet.py',
    '../_base_/taps/wrn.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model=_base_.pyramidnet200_240,
        checkpoint='work_dirs/pyramidnet200-240_1xb64_cifar100/epoch_200.pth',
        bn='batch',
    ),
    student_taps=_base_.wrn_taps,
    teacher_taps=_base_.pyramidnet_bottleneck_taps,
    terms=dict(
        loss_ofd=_base_.ofd_term,
    ),
)
