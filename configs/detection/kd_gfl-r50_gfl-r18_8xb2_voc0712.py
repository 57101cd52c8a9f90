# KD: GFL on ResNet50 teaches the one on ResNet18 the class scores of all anchors.
_base_ = ['../_base_/pairs/gfl-r50_gfl-r18_voc0712.py', '../_base_/terms/fpn_detectors.py']

model = dict(terms=dict(loss_kd=_base_.fpn_kd_term))
