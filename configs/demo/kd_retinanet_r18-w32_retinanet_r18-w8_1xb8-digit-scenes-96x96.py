# The detection demo's student with KD on the class scores of all levels.
_base_ = ['../_base_/pairs/retinanet_r18-w32_retinanet_r18-w8_digit-scenes.py', '../_base_/terms/retinanet_demo.py']

model = dict(terms=dict(loss_kd=_base_.kd_term))
