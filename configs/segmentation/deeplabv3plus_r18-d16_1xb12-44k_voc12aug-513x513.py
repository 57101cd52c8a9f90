# The student alone: DeepLabV3+ on ResNet-18, output stride 16.
_base_ = './deeplabv3plus_r101-d16_1xb12-44k_voc12aug-513x513.py'

model = dict(
    pretrained='open-mmlab://resnet18_v1c',
    backbone=dict(depth=18),
    decode_head=dict(in_channels=512, c1_in_channels=64),
)
