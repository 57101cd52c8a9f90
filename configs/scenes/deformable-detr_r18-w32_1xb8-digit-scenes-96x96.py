# The teacher: a backbone four times as wide as its student's, and a quarter more steps.
_base_ = './deformable-detr_r18-w8_1xb8-digit-scenes-96x96.py'

model = dict(backbone=dict(base_channels=32), neck=dict(in_channels=[64, 128]))
max_iters = 2000
param_scheduler = [dict(type='OneCycleLR', eta_max=0.001, total_steps=max_iters, by_epoch=False)]
train_cfg = dict(max_iters=max_iters, val_interval=1000)
default_hooks = dict(checkpoint=dict(interval=1000))
