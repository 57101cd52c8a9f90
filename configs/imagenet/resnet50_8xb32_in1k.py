# resnet50 alone, on ImageNet as mmpretrain reads it: data/imagenet/train and val.
_base_ = [
    '../_base_/runtimes/mmpretrain.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/imagenet_100e.py',
    '../_base_/models/resnet50_imagenet.py',
]

model = _base_.resnet50
