# LONDON and KD.
_base_ = ['./lckd_retinanet_r18-w32_retinanet_r18-w8_1xb8-digit-scenes-96x96.py']

model = dict(terms=dict(loss_kd=_base_.kd_term))
