# KD and PKD: SOLOv2 on ResNet101 teaches the one on ResNet50 the class scores of all cells, and its pyramid.
_base_ = ['../_base_/pairs/solov2-r101-dcn_solov2-r50_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=_base_.solov2_terms)
