# KD of the second stage: both heads score the regions that the student sampled.
_base_ = ['../_base_/pairs/faster-rcnn-r101_faster-rcnn-r50_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=dict(loss_kd=_base_.two_stage_kd_term))
