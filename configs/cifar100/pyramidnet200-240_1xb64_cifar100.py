# The teacher of settings e and f: PyramidNet-200 (bottleneck, alpha 240) alone. The authors' was trained with mixup, by
# a recipe that is not published; this one is not.
_base_ = [
    '../_base_/runtimes/mmpretrain.py',
    '../_base_/datasets/cifar100_bs128.py',
    '../_base_/schedules/cifar100_200e.py',
    '../_base_/models/pyramidnet200-240_cifar100.py',
]

model = _base_.pyramidnet200_240
train_dataloader = dict(batch_size=64)
# The learning rate goes down once more, to a 1000th of its start.
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=True, milestones=[100, 150], gamma=0.1),
    dict(type='MultiStepLR', by_epoch=True, milestones=[175], gamma=0.1),
]
