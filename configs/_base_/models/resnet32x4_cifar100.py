resnet32x4 = dict(
    type='ImageClassifier',
    backbone=dict(type='lckd_mm.CifarResNet', depth=32, widths=(32, 64, 128, 256)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=256, loss=dict(type='CrossEntropyLoss')),
)
