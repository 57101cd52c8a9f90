# BCKD: RetinaNet on ResNet101 teaches the one on ResNet18 its class scores and boxes, where both differ.
_base_ = ['../_base_/pairs/retinanet-r101_retinanet-r18_coco.py', '../_base_/terms/dense_detectors.py']

model = dict(terms=dict(loss_bckd=_base_.bckd_term, loss_boxes=_base_.retinanet_bckd_boxes_term))
