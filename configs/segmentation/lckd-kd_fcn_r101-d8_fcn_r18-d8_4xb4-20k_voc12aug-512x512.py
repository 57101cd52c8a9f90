# LONDON and KD.
_base_ = './lckd_fcn_r101-d8_fcn_r18-d8_4xb4-20k_voc12aug-512x512.py'

model = dict(terms=dict(loss_kd=_base_.kd_term))
