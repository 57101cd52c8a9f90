# KD: RTMDet-l teaches RTMDet-tiny the class scores of all positions.
_base_ = ['../_base_/pairs/rtmdet-l_rtmdet-tiny_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=dict(loss_kd=_base_.rtmdet_kd_term))
