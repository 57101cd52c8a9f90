# DIST of the class scores: PSPNet-R101-d8 teaches PSPNet-R18-d8.
_base_ = ['../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_cityscapes.py', '../_base_/terms/segmentors.py']

model = dict(terms=dict(loss_dist=_base_.dist_term))
