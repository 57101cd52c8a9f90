# Student of setting e alone: wrn28-4.
_base_ = [
    '../_base_/runtimes/mmpretrain.py',
    '../_base_/datasets/cifar100_bs128.py',
    '../_base_/schedules/cifar100_200e.py',
    '../_base_/models/wrn28-4_cifar100.py',
]

model = _base_.wrn28_4
train_dataloader = dict(batch_size=64)
# The learning rate goes down once more, to a 1000th of its start.
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=True, milestones=[100, 150], gamma=0.1),
    dict(type='MultiStepLR', by_epoch=True, milestones=[175], gamma=0.1),
]
