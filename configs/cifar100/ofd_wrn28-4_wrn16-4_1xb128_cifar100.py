# Setting a, OFD: wrn28-4 teaches wrn16-4, on batch statistics as the authors run it.
_base_ = ['../_base_/pairs/wrn28-4_wrn16-4_cifar100.py', '../_base_/terms/cifar100.py']

model = dict(teacher=dict(bn='batch'), terms=dict(loss_ofd=_base_.ofd_term))
