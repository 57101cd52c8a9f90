# Setting e, OFD: pyramidnet200-240 teaches wrn28-4, on batch statistics as the authors run it.
_base_ = ['../_base_/pairs/pyramidnet200-240_wrn28-4_cifar100.py', '../_base_/terms/cifar100.py']

model = dict(teacher=dict(bn='batch'), terms=dict(loss_ofd=_base_.ofd_term))
