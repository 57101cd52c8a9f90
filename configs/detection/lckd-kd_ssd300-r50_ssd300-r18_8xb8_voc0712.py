# LONDON and KD.
_base_ = './lckd_ssd300-r50_ssd300-r18_8xb8_voc0712.py'

model = dict(terms=dict(loss_kd=_base_.ssd_kd_term))
