# KD of the class scores.
_base_ = ['../_base_/pairs/wrn16-2_wrn10-1_fashion-mnist6000.py', '../_base_/terms/fashion_mnist.py']

model = dict(terms=dict(loss_kd=_base_.kd_term))
