# Setting f, KD: pyramidnet200-240 teaches pyramidnet110-84. Temperature and weight are ours; the papers give none.
_base_ = ['../_base_/pairs/pyramidnet200-240_pyramidnet110-84_cifar100.py', '../_base_/terms/cifar100.py']

model = dict(terms=dict(loss_kd=_base_.kd_term))
