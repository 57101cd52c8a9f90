# SSD300 on ResNet18 alone, on VOC07+12; the levels are the teacher's, as far as the backbone's widths let them.
_base_ = './ssd300-r50_8xb8_voc0712.py'

model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=(128, 256, 512), out_channels=(128, 256, 512, 512, 256, 256)),
    bbox_head=dict(in_channels=(128, 256, 512, 512, 256, 256)),
)
