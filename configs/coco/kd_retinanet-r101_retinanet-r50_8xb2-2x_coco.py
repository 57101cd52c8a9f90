# KD: RetinaNet on ResNet101 teaches the one on ResNet50 the class scores of all anchors.
_base_ = ['../_base_/pairs/retinanet-r101_retinanet-r50_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=dict(loss_kd=_base_.fpn_kd_term))
