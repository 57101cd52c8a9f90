# KD of the class scores.
_base_ = ['../_base_/pairs/deeplabv3plus_m-v2-d16_deeplabv3plus_r18-w8-d16_nuclei.py', '../_base_/terms/nuclei.py']

model = dict(terms=dict(loss_kd=_base_.kd_term))
