pyramidnet200_240 = dict(
    type='ImageClassifier',
    backbone=dict(type='lckd_mm.PyramidNet', depth=200, alpha=240, bottleneck=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=1024, loss=dict(type='CrossEntropyLoss')),
)
