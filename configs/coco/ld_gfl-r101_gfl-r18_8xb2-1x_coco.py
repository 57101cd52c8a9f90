# LD: GFL on ResNet101 teaches the one on ResNet18 its distributions of the boxes' edges.
_base_ = ['../_base_/pairs/gfl-r101_gfl-r18_coco.py', '../_base_/terms/dense_detectors.py']

model = dict(terms=dict(loss_ld=_base_.gfl_ld_term))
