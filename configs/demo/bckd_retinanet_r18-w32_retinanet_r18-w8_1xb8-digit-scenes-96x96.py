# The detection demo's student with BCKD: class scores and boxes, where both nets differ.
_base_ = ['../_base_/pairs/retinanet_r18-w32_retinanet_r18-w8_digit-scenes.py', '../_base_/terms/retinanet_demo.py']

model = dict(terms=dict(loss_bckd=_base_.bckd_term, loss_boxes=_base_.bckd_boxes_term))
