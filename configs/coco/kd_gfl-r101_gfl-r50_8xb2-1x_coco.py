# KD: GFL on ResNet101 teaches the one on ResNet50 the class scores of all positions.
_base_ = ['../_base_/pairs/gfl-r101_gfl-r50_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=dict(loss_kd=_base_.fpn_kd_term))
