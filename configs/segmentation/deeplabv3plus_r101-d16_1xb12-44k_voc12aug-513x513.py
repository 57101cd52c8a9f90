# The teacher of OFD's segmentation pairs: DeepLabV3+ on ResNet-101, output stride 16, by OFD's recipe. 50 epochs; no
# auxiliary head; heads (and connectors, where there are some) at ten times the learning rate.
_base_ = [
    'mmseg::_base_/models/deeplabv3plus_r50-d8.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/datasets/voc12aug_513x513.py',
    '../_base_/schedules/voc12aug_44k.py',
]

model = dict(
    data_preprocessor=dict(size=(513, 513)),
    pretrained='open-mmlab://resnet101_v1c',
    backbone=dict(depth=101, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    decode_head=dict(dilations=(1, 6, 12, 18), channels=256, num_classes=21),
    auxiliary_head=None,
)
