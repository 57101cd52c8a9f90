# KD and PKD: RTMDet-Ins-l teaches RTMDet-Ins-s the class scores of all positions, and its pyramid.
_base_ = ['../_base_/pairs/rtmdet-ins-l_rtmdet-ins-s_coco.py', '../_base_/terms/coco_detectors.py']

model = dict(terms=_base_.rtmdet_ins_terms)
