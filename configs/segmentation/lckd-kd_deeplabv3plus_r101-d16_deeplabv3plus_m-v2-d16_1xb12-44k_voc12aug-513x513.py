# LONDON and KD.
_base_ = './lckd_deeplabv3plus_r101-d16_deeplabv3plus_m-v2-d16_1xb12-44k_voc12aug-513x513.py'

model = dict(terms=dict(loss_kd=_base_.kd_term))
