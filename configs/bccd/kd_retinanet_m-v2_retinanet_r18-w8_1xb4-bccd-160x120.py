# KD of the class scores of all levels.
_base_ = ['../_base_/pairs/retinanet_m-v2_retinanet_r18-w8_bccd.py', '../_base_/terms/bccd.py']

model = dict(terms=dict(loss_kd=_base_.kd_term))
