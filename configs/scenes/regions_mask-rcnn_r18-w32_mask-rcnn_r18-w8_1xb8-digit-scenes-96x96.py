# Mask R-CNN with class scores, boxes and masks of the regions that the student sampled.
_base_ = ['../_base_/pairs/mask-rcnn_r18-w32_mask-rcnn_r18-w8_digit-scenes.py', '../_base_/terms/scenes.py']

model = dict(terms=dict(loss_masks=_base_.masks_term, **_base_.regions_terms))
