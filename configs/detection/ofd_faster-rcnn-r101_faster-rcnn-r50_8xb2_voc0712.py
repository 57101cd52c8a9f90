# OFD: Faster R-CNN on ResNet101 teaches the one on ResNet50.
_base_ = ['../_base_/pairs/faster-rcnn-r101_faster-rcnn-r50_voc0712.py', '../_base_/terms/fpn_detectors.py']

model = dict(terms=dict(loss_ofd=_base_.fpn_ofd_term))
