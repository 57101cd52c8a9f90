# LONDON and KD.
_base_ = './lckd_gfl-r50_gfl-r18_8xb2_voc0712.py'

model = dict(terms=dict(loss_kd=_base_.fpn_kd_term))
