# OFD: GFL on ResNet101 teaches the one on ResNet18, on running statistics: two images are few.
_base_ = ['../_base_/pairs/gfl-r101_gfl-r18_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=dict(loss_ofd=_base_.fpn_ofd_term))
