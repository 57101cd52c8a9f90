# Student of the IE-KD pair alone: resnet20.
_base_ = [
    '../_base_/runtimes/mmpretrain.py',
    '../_base_/datasets/cifar100_bs128.py',
    '../_base_/schedules/cifar100_160e.py',
    '../_base_/models/resnet20_cifar100.py',
]

model = _base_.resnet20
