# The student alone: DeepLabV3+ on a ResNet-18 of an eighth of the width, output stride 16, not pretrained.
_base_ = [
    'mmseg::_base_/models/deeplabv3plus_r50-d8.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/datasets/nuclei_96x96.py',
]

# GroupNorm: a fifth of the images are bright, the others dark, so the statistics of batches of 8 differ.
norm_cfg = dict(type='GN', num_groups=4)
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    pretrained=None,
    backbone=dict(
        depth=18,
        base_channels=8,
        stem_channels=16,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        in_channels=64,
        channels=32,
        dilations=(1, 2, 4),
        c1_in_channels=8,
        c1_channels=8,
        dropout_ratio=0.0,
        num_classes=3,
        norm_cfg=norm_cfg,
        init_cfg=None,
        # Borders are thin: with a weight of 1 the nets find a third of them.
        loss_decode=dict(class_weight=[1.0, 1.0, 4.0]),
    ),
    auxiliary_head=None,
)

max_iters = 800
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.008, weight_decay=0.01))
param_scheduler = [dict(type='OneCycleLR', eta_max=0.008, total_steps=max_iters, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=800)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=400, max_keep_ckpts=1),
)
randomness = dict(seed=0)
