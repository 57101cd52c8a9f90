# The first 6,000 training images of Fashion-MNIST to train on (classes are in random order in the file), its last 5,000
# to validate, and the test file to test.
# Data: python tools/prepare_data.py fashion-mnist SOURCE
# Images of one channel become three equal ones by three means.
data_preprocessor = dict(num_classes=10, mean=[73.0] * 3, std=[90.0] * 3, to_rgb=False)
train_pipeline = [
    dict(type='RandomCrop', crop_size=28, padding=2),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]
_images = dict(type='FashionMNIST', data_root='data/fashion_mnist', download=False)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(split='train', indices=6000, pipeline=train_pipeline, **_images),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(split='train', indices=-5000, pipeline=test_pipeline, **_images),
)
test_dataloader = dict(
    batch_size=250,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(split='test', test_mode=True, pipeline=test_pipeline, **_images),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
