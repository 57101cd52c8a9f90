# Student of AFD's setting alone: resnet32.
_base_ = [
    '../_base_/runtimes/mmpretrain.py',
    '../_base_/datasets/cifar100_bs128.py',
    '../_base_/schedules/cifar100_300e.py',
    '../_base_/models/resnet32_cifar100.py',
]

model = _base_.resnet32
