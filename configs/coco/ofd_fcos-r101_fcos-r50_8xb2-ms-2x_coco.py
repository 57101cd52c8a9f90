# OFD: FCOS on ResNet101 teaches the one on ResNet50, on running statistics: two images are few.
_base_ = ['../_base_/pairs/fcos-r101_fcos-r50_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=dict(loss_ofd=_base_.fpn_ofd_term))
