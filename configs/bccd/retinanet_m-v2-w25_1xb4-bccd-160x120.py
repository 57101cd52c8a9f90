# The student alone: RetinaNet on MobileNetV2 of a quarter of the width, not pretrained. Levels begin at stride 4, with
# anchors of 8 to 90 pixels: platelets are about 10 pixels high, white cells 50. The head has GroupNorm: all levels
# share it, and the running statistics of a BatchNorm there would be those of no level.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/datasets/bccd_160x120.py',
    '../_base_/schedules/bccd_800.py',
]

model = dict(
    backbone=dict(
        _delete_=True, type='MobileNetV2', widen_factor=0.25, out_indices=(1, 2, 4, 6), norm_cfg=dict(type='BN')
    ),
    neck=dict(
        in_channels=[8, 8, 24, 80],
        out_channels=32,
        start_level=0,
        add_extra_convs=False,
        num_outs=4,
        norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(
        num_classes=3,
        in_channels=32,
        feat_channels=32,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=8),
        anchor_generator=dict(octave_base_scale=2, scales_per_octave=2, ratios=[1.0], strides=[4, 8, 16, 32]),
    ),
    test_cfg=dict(nms_pre=200, max_per_img=60),
)
