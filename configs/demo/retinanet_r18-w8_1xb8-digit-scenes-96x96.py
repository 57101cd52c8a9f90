# The student alone on the embedded digit scenes: mmdetection's RetinaNet for VOC with less of everything.
_base_ = 'mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py'

# Data: python tools/prepare_data.py digit-scenes
data_root = 'data/digit_scenes'
digits = dict(
    classes=('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine'),
    palette=[
        (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48),
        (145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212),
    ],
)  # fmt: skip
# No augmentation: the scenes differ enough, and a digit is not the same digit mirrored.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),  # the head asks by how much
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
_scenes = dict(
    type='XMLDataset',
    data_root=data_root,
    metainfo=digits,
    data_prefix=dict(sub_data_root=''),
)
train_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(ann_file='ImageSets/Main/train.txt', pipeline=train_pipeline, **_scenes),
)
val_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='ImageSets/Main/val.txt', test_mode=True, pipeline=test_pipeline, **_scenes),
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='VOCMetric', metric='mAP', eval_mode='area')
test_evaluator = val_evaluator

# Three stages and three levels from stride 4: digits are 12 to 40 pixels high, and higher than wide.
model = dict(
    backbone=dict(
        depth=18,
        num_stages=3,
        out_indices=(0, 1, 2),
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        base_channels=8,
        stem_channels=32,
        frozen_stages=-1,
        norm_eval=False,
        zero_init_residual=False,
        init_cfg=None,
    ),
    neck=dict(
        in_channels=[8, 16, 32],
        out_channels=32,
        start_level=0,
        add_extra_convs=False,
        num_outs=3,
        norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(
        num_classes=10,
        in_channels=32,
        feat_channels=32,
        stacked_convs=2,
        norm_cfg=dict(type='BN'),
        anchor_generator=dict(
            octave_base_scale=3,
            scales_per_octave=2,
            ratios=[1.5],
            strides=[4, 8, 16],
        ),
    ),
    test_cfg=dict(nms_pre=200, max_per_img=20),
)

max_iters = 800
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=0.004, weight_decay=0.01))
param_scheduler = [
    dict(type='OneCycleLR', eta_max=0.004, total_steps=max_iters, by_epoch=False),
]
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=200)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
