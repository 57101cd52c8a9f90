# BCCD's blood cells at a quarter of their size, 160 x 120. Many red cells carry no box, which caps the AP of RBC.
# Data: python tools/prepare_data.py bccd SOURCE
bccd = dict(classes=('RBC', 'WBC', 'Platelets'), palette=[(220, 20, 60), (70, 70, 220), (240, 200, 60)])
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(160, 120), keep_ratio=True),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 120), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),  # boxes are compared in pixels of the file
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
_cells = dict(type='XMLDataset', data_root='data/bccd', metainfo=bccd, data_prefix=dict(sub_data_root=''))
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(ann_file='ImageSets/Main/train.txt', pipeline=train_pipeline, **_cells),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='ImageSets/Main/val.txt', test_mode=True, pipeline=test_pipeline, **_cells),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='ImageSets/Main/test.txt', test_mode=True, pipeline=test_pipeline, **_cells),
)
# mAP is the mean over both thresholds.
val_evaluator = dict(type='lckd_mm.VOCMetric', metric='mAP', iou_thrs=[0.5, 0.7], eval_mode='area')
test_evaluator = val_evaluator
