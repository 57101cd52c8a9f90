# KD and PKD: YOLACT on ResNet101 teaches the one on ResNet50 the class scores of all anchors, and its pyramid.
_base_ = ['../_base_/pairs/yolact-r101_yolact-r50_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=_base_.yolact_terms)
