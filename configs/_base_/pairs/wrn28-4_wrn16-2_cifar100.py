# Setting c: wrn28-4 teaches wrn16-2.
_base_ = ['../../cifar100/wrn16-2_1xb128_cifar100.py', '../models/wrn28-4_cifar100.py', '../taps/wrn.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.wrn28_4, checkpoint='work_dirs/wrn28-4_1xb128_cifar100/epoch_200.pth'),
    taps=_base_.wrn_taps,
)
