resnet32 = dict(
    type='ImageClassifier',
    backbone=dict(type='lckd_mm.CifarResNet', depth=32),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=64, loss=dict(type='CrossEntropyLoss')),
)
