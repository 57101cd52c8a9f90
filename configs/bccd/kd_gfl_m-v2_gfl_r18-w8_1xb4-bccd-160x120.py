# KD of the class scores of all levels.
_base_ = ['../_base_/pairs/gfl_m-v2_gfl_r18-w8_bccd.py', '../_base_/terms/bccd.py']

model = dict(terms=dict(loss_kd=_base_.kd_term))
