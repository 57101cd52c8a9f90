# Setting a, LONDON and KD.
_base_ = './lckd_wrn28-4_wrn16-4_1xb128_cifar100.py'

model = dict(terms=dict(loss_kd=_base_.kd_term))
