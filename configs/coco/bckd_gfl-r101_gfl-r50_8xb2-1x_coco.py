# BCKD: GFL on ResNet101 teaches the one on ResNet50 its class scores and boxes, where both differ.
_base_ = ['../_base_/pairs/gfl-r101_gfl-r50_coco.py', '../_base_/terms/dense_detectors.py']

model = dict(terms=dict(loss_bckd=_base_.bckd_term, loss_boxes=_base_.gfl_bckd_boxes_term))
