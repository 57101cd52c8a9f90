pyramidnet110_84 = dict(
    type='ImageClassifier',
    backbone=dict(type='lckd_mm.PyramidNet', depth=110, alpha=84),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=100, loss=dict(type='CrossEntropyLoss')),
)
