# 24 epochs of SGD, cosine from 0.05.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=24, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=24, val_interval=24)
val_cfg = {}
test_cfg = {}
