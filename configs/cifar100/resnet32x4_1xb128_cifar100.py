# The net that Blakeney et al. prune, alone and whole.
_base_ = [
    '../_base_/runtimes/mmpretrain.py',
    '../_base_/datasets/cifar100_bs128.py',
    '../_base_/schedules/cifar100_200e.py',
    '../_base_/models/resnet32x4_cifar100.py',
]

model = _base_.resnet32x4
