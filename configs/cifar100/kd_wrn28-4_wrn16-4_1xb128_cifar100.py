# Setting a, KD: wrn28-4 teaches wrn16-4. Temperature and weight are ours; the papers give none.
_base_ = ['../_base_/pairs/wrn28-4_wrn16-4_cifar100.py', '../_base_/terms/cifar100.py']

model = dict(terms=dict(loss_kd=_base_.kd_term))
