# IE over the factor of an auto-encoder; its 30 epochs need be run once only, see README.md: resnet56 teaches resnet20.
_base_ = [
    './resnet20_1xb128_cifar100.py',
    '../_base_/models/resnet56_cifar100.py',
    '../_base_/terms/ie.py',
    '../_base_/taps/cifar_resnet.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.resnet56, checkpoint='work_dirs/resnet56_1xb128_cifar100/epoch_200.pth'),
    taps=_base_.cifar_resnet_taps,
    terms=_base_.ie_terms,
)
