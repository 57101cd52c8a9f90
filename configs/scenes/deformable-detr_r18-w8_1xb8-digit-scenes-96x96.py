# The student alone: mmdetection's Deformable DETR with refined boxes, and less of everything.
_base_ = ['../_base_/datasets/digit_scenes_96x96.py', 'mmdet::_base_/default_runtime.py']

width, heads, queries = 64, 4, 20
_deformable = dict(embed_dims=width, num_heads=heads, num_levels=2, dropout=0.0, batch_first=True)
_ffn = dict(embed_dims=width, feedforward_channels=4 * width, ffn_drop=0.0)
# The two last of three stages, at strides 8 and 16.
model = dict(
    type='DeformableDETR',
    num_queries=queries,
    num_feature_levels=2,
    with_box_refine=True,
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        num_stages=3,
        out_indices=(1, 2),
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        base_channels=8,
        stem_channels=32,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
    ),
    neck=dict(
        type='ChannelMapper',
        in_channels=[16, 32],
        kernel_size=1,
        out_channels=width,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=8),
        num_outs=2,
    ),
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=_deformable, ffn_cfg=_ffn)),
    decoder=dict(
        num_layers=2,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=width, num_heads=heads, dropout=0.0, batch_first=True),
            cross_attn_cfg=_deformable,
            ffn_cfg=_ffn,
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(num_feats=width // 2, normalize=True, offset=-0.5),
    bbox_head=dict(
        type='DeformableDETRHead',
        num_classes=10,
        embed_dims=width,
        sync_cls_avg_factor=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=queries),
)

max_iters = 1600
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.001, weight_decay=0.0001),
    clip_grad=dict(max_norm=1.0, norm_type=2),
)
param_scheduler = [dict(type='OneCycleLR', eta_max=0.001, total_steps=max_iters, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=800)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=800, max_keep_ckpts=1),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
