# LONDON and KD.
_base_ = './lckd_resnet152_resnet50_8xb32_in1k.py'

model = dict(terms=dict(loss_kd=_base_.kd_term))
