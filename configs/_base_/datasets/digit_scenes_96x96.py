# The embedded digit scenes with the box, and where a pipeline says so the mask, of each digit, in COCO's format.
# Data: python tools/prepare_data.py digit-scenes
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
    dict(type='Resize', scale=(96, 96), keep_ratio=True),  # the heads ask by how much
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
_scenes = dict(type='CocoDataset', data_root='data/digit_scenes', metainfo=digits, data_prefix=dict(img='JPEGImages/'))
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(ann_file='coco/train.json', pipeline=train_pipeline, **_scenes),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='coco/val.json', test_mode=True, pipeline=test_pipeline, **_scenes),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file='data/digit_scenes/coco/val.json', metric=['bbox'])
test_evaluator = val_evaluator
