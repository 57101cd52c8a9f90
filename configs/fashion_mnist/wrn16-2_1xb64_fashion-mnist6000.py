# The teacher, on the same 6,000 images.
_base_ = './wrn10-1_1xb64_fashion-mnist6000.py'

model = dict(backbone=dict(depth=16, widen_factor=2), head=dict(in_channels=128))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=20, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=20, val_interval=10)
default_hooks = dict(checkpoint=dict(interval=10))
