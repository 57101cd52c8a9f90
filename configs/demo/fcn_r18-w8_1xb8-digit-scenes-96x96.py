# The student alone on the embedded digit scenes: the front door's baseline with less of everything.
_base_ = '../segmentation/fcn_r18-d8_4xb4-20k_voc12aug-512x512.py'

# Data: python tools/prepare_data.py digit-scenes
data_root = 'data/digit_scenes'
crop_size = (96, 96)
digits = dict(
    classes=('background', 'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine'),
    palette=[
        [0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48],
        [145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60], [250, 190, 212],
    ],
)  # fmt: skip
# No augmentation: the scenes differ enough, and a digit is not the same digit mirrored.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
_scenes = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=digits,
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    img_suffix='.jpg',
    seg_map_suffix='.png',
)
train_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(ann_file='ImageSets/Segmentation/train.txt', pipeline=train_pipeline, **_scenes),
)
val_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='ImageSets/Segmentation/val.txt', pipeline=test_pipeline, **_scenes),
)
test_dataloader = val_dataloader

# Heads that start near zero spend hundreds of iterations on predicting background alone: the usual small init of the
# classifiers is left out. Dilation would reach past the border of 12 x 12 maps.
model = dict(
    data_preprocessor=dict(size=crop_size),
    pretrained=None,
    backbone=dict(base_channels=8, stem_channels=32, dilations=(1, 1, 1, 1), zero_init_residual=False),
    decode_head=dict(
        in_channels=64,
        channels=64,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=11,
        init_cfg=None,
    ),
    auxiliary_head=dict(in_channels=32, channels=32, dropout_ratio=0.0, num_classes=11, init_cfg=None),
)

max_iters = 800
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=0.004, weight_decay=0.01))
param_scheduler = [
    dict(type='OneCycleLR', eta_max=0.004, total_steps=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=200)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=200, max_keep_ckpts=2),
)
randomness = dict(seed=0)
