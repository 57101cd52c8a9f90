# Score-weighted distance: GFL on ResNet101 teaches the one on ResNet50 the levels of its pyramid, where it
# sees objects.
_base_ = ['../_base_/pairs/gfl-r101_gfl-r50_coco.py', '../_base_/terms/dense_detectors.py']

model = dict(terms=dict(loss_swl2=_base_.swl2_term))
