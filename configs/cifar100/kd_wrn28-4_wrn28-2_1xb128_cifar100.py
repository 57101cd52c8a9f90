# Setting b, KD: wrn28-4 teaches wrn28-2. Temperature and weight are ours; the papers give none.
_base_ = ['../_base_/pairs/wrn28-4_wrn28-2_cifar100.py', '../_base_/terms/cifar100.py']

model = dict(terms=dict(loss_kd=_base_.kd_term))
