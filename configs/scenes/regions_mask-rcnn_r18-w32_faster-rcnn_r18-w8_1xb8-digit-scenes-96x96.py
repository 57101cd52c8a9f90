# Faster R-CNN taught by a Mask R-CNN: class scores and boxes of the regions that the student sampled.
_base_ = ['../_base_/pairs/mask-rcnn_r18-w32_faster-rcnn_r18-w8_digit-scenes.py', '../_base_/terms/scenes.py']

model = dict(terms=_base_.regions_terms)
