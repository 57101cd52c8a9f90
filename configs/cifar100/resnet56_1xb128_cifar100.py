# Student of setting d alone: resnet56.
_base_ = [
    '../_base_/runtimes/mmpretrain.py',
    '../_base_/datasets/cifar100_bs128.py',
    '../_base_/schedules/cifar100_200e.py',
    '../_base_/models/resnet56_cifar100.py',
]

model = _base_.resnet56
# The learning rate goes down once more, to a 500th of its start.
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=True, milestones=[100, 150], gamma=0.1),
    dict(type='MultiStepLR', by_epoch=True, milestones=[175], gamma=0.2),
]
