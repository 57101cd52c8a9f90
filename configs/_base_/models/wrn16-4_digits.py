wrn16_4 = dict(
    type='ImageClassifier',
    backbone=dict(type='lckd_mm.WideResNet', depth=16, widen_factor=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=256, loss=dict(type='CrossEntropyLoss')),
)
