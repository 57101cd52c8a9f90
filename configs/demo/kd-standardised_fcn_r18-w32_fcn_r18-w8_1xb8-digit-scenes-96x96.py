# The demo's student with KD on standardised class scores.
_base_ = ['../_base_/pairs/fcn_r18-w32_fcn_r18-w8_digit-scenes.py', '../_base_/terms/segmentors.py']

model = dict(terms=dict(loss_kd=_base_.kd_standardised_term))
