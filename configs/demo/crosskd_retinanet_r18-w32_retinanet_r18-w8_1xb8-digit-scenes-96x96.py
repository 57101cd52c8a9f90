# The detection demo's student with CrossKD: what the teacher's head makes of the student's features.
_base_ = ['../_base_/pairs/retinanet_r18-w32_retinanet_r18-w8_digit-scenes.py', '../_base_/terms/retinanet_demo.py']

model = dict(terms=dict(loss_crosskd=_base_.crosskd_term, loss_boxes=_base_.crosskd_boxes_term))
