# Student of setting a alone: wrn16-4.
_base_ = [
    '../_base_/runtimes/mmpretrain.py',
    '../_base_/datasets/cifar100_bs128.py',
    '../_base_/schedules/cifar100_200e.py',
    '../_base_/models/wrn16-4_cifar100.py',
]

model = _base_.wrn16_4
