# The pair of IE-KD: resnet56 teaches resnet20.
_base_ = ['../../cifar100/resnet20_1xb128_cifar100.py', '../models/resnet56_cifar100.py', '../taps/cifar_resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.resnet56, checkpoint='work_dirs/resnet56_1xb128_cifar100/epoch_200.pth'),
    taps=_base_.cifar_resnet_taps,
)
