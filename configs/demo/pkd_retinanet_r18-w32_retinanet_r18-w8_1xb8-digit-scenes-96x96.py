# The detection demo's student with PKD: the channels of the pyramid, up to their scale.
_base_ = ['../_base_/pairs/retinanet_r18-w32_retinanet_r18-w8_digit-scenes.py', '../_base_/terms/retinanet_demo.py']

model = dict(terms=dict(loss_pkd=_base_.pkd_term))
