# PKD: Faster R-CNN on ResNet101 teaches the one on ResNet50 the levels of its pyramid.
_base_ = ['../_base_/pairs/faster-rcnn-r101_faster-rcnn-r50_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=dict(loss_pkd=_base_.two_stage_pkd_term))
