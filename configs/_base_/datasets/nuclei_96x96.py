# Nuclei, their borders and the background: crops of 96 x 96 to train on, whole images to validate and test.
# Data: python tools/prepare_data.py nuclei SOURCE
nuclei = dict(classes=('background', 'nucleus', 'border'), palette=[[0, 0, 0], [60, 180, 75], [230, 25, 75]])
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=(96, 96)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
_images = dict(
    type='BaseSegDataset',
    data_root='data/nuclei',
    metainfo=nuclei,
    data_prefix=dict(img_path='images', seg_map_path='masks'),
    img_suffix='.png',
    seg_map_suffix='.png',
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(ann_file='train.txt', pipeline=train_pipeline, **_images),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='val.txt', pipeline=test_pipeline, **_images),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='test.txt', pipeline=test_pipeline, **_images),
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
