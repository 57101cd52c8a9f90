mobilenetv1 = dict(
    type='ImageClassifier',
    backbone=dict(type='lckd_mm.MobileNetV1', stem='cifar'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=1024, loss=dict(type='CrossEntropyLoss')),
)
