# The detection demo's student with MGD: the teacher's pyramid, generated from about a third of the student's positions.
_base_ = ['../_base_/pairs/retinanet_r18-w32_retinanet_r18-w8_digit-scenes.py', '../_base_/terms/retinanet_demo.py']

model = dict(terms=dict(loss_mgd=_base_.mgd_term))
