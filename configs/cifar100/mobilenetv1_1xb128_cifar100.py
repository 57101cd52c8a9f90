# Student of setting g alone: mobilenetv1 (ours: nothing is published of this pair's recipe).
_base_ = [
    '../_base_/runtimes/mmpretrain.py',
    '../_base_/datasets/cifar100_bs128.py',
    '../_base_/schedules/cifar100_200e.py',
    '../_base_/models/mobilenetv1_cifar100.py',
]

model = _base_.mobilenetv1
