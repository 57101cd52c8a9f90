wrn10_1 = dict(
    type='ImageClassifier',
    backbone=dict(type='lckd_mm.WideResNet', depth=10, widen_factor=1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')),
)
