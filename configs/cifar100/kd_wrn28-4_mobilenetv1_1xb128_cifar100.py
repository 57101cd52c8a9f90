# Setting g, KD: wrn28-4 teaches mobilenetv1. Temperature and weight are ours; the papers give none.
_base_ = ['../_base_/pairs/wrn28-4_mobilenetv1_cifar100.py', '../_base_/terms/cifar100.py']

model = dict(terms=dict(loss_kd=_base_.kd_term))
