# OFD: GFL on ResNet50 teaches the one on ResNet18, on running statistics: two images are few.
_base_ = ['../_base_/pairs/gfl-r50_gfl-r18_voc0712.py', '../_base_/terms/fpn_detectors.py']

model = dict(terms=dict(loss_ofd=_base_.fpn_ofd_term))
