# OFD's segmentation recipe: 50 epochs of 882 iterations, SGD with Nesterov momentum, poly 0.9.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.007, momentum=0.9, weight_decay=5e-4, nesterov=True),
    paramwise_cfg=dict(custom_keys={'decode_head': dict(lr_mult=10.0), 'terms': dict(lr_mult=10.0)}),
)
param_scheduler = dict(type='PolyLR', power=0.9, by_epoch=False, begin=0, end=44100)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=44100, val_interval=4410)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4410),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
