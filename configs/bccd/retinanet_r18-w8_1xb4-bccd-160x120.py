# The student alone: RetinaNet on ResNet-18 of an eighth of the width, not pretrained.
_base_ = './retinanet_m-v2-w25_1xb4-bccd-160x120.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        stem_channels=8,
        base_channels=8,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
    ),
    neck=dict(in_channels=[8, 16, 32, 64]),
)
