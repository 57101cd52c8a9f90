# The teacher of settings a, b, c, d and g: WRN28-4 alone.
_base_ = [
    '../_base_/runtimes/mmpretrain.py',
    '../_base_/datasets/cifar100_bs128.py',
    '../_base_/schedules/cifar100_200e.py',
    '../_base_/models/wrn28-4_cifar100.py',
]

model = _base_.wrn28_4
