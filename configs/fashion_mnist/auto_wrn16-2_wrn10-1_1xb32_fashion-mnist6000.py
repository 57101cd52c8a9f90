# What the recipe of the one line chooses: KD, and OFD of the stages.
_base_ = ['../_base_/pairs/wrn16-2_wrn10-1_fashion-mnist6000.py', '../_base_/terms/fashion_mnist.py']

model = dict(terms=dict(loss_kd=dict(_base_.kd_term, weight=1.0), loss_ofd=_base_.ofd_term))
