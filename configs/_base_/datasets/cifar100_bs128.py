# CIFAR-100 as OFD and LONDON train on it: reflected padding, random crop and flip, their own mean and deviation.
# Loaded from CIFAR-100's own files: unpack them to data/cifar100, or let mmpretrain fetch them there.
data_preprocessor = dict(
    num_classes=100,
    mean=[125.3, 123.0, 113.9],
    std=[63.0, 62.1, 66.7],
    to_rgb=False,  # the files hold RGB
)
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CIFAR100',
        data_prefix='data/cifar100',
        split='train',
        pipeline=[
            dict(type='RandomCrop', crop_size=32, padding=4, padding_mode='reflect'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CIFAR100', data_prefix='data/cifar100', split='test', pipeline=[dict(type='PackInputs')]),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
