# The teacher's mask decoder judges what both pixel decoders give by its own queries.
_base_ = [
    '../_base_/pairs/mask2former_swin-s_mask2former_r50_cityscapes.py',
    '../_base_/terms/mask2former.py',
]

model = dict(terms=dict(loss_queries=_base_.mask_queries_term))
