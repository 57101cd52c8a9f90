# Setting g, LONDON and KD.
_base_ = './lckd_wrn28-4_mobilenetv1_1xb128_cifar100.py'

model = dict(terms=dict(loss_kd=_base_.kd_term))
