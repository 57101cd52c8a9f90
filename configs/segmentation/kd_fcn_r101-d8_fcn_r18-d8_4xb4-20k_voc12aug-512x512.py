# KD: FCN-R101-d8 teaches FCN-R18-d8.
_base_ = ['../_base_/pairs/fcn_r101-d8_fcn_r18-d8_voc12aug.py', '../_base_/terms/segmentation.py']

model = dict(terms=dict(loss_kd=_base_.kd_term))
