# The demo's student with DIST on the class scores.
_base_ = ['../_base_/pairs/fcn_r18-w32_fcn_r18-w8_digit-scenes.py', '../_base_/terms/segmentors.py']

model = dict(terms=dict(loss_dist=_base_.dist_term))
