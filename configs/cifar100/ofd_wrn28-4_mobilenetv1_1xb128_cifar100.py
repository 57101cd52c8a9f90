# Setting g, OFD: wrn28-4 teaches mobilenetv1, on batch statistics as the authors run it.
# The recipe is ours: no weight is published for this pair.
_base_ = ['../_base_/pairs/wrn28-4_mobilenetv1_cifar100.py', '../_base_/terms/cifar100.py']

model = dict(teacher=dict(bn='batch'), terms=dict(loss_ofd=_base_.ofd_term))
