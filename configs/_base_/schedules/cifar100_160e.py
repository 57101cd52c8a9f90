# IE-KD's schedule: 160 epochs, a tenth of the learning rate after 80 and 120.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True))
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[80, 120], gamma=0.1)]
train_cfg = dict(by_epoch=True, max_epochs=160, val_interval=1)
val_cfg = {}
test_cfg = {}
