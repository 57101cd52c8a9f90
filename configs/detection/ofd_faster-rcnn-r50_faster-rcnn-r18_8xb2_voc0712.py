# OFD: Faster R-CNN on ResNet50 teaches the one on ResNet18.
_base_ = ['../_base_/pairs/faster-rcnn-r50_faster-rcnn-r18_voc0712.py', '../_base_/terms/fpn_detectors.py']

model = dict(terms=dict(loss_ofd=_base_.fpn_ofd_term))
