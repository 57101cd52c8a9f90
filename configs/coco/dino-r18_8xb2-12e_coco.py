# DINO on ResNet18 alone: mmdet's own config of ResNet50, but for the backbone. mmdet has none of ResNet18.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[128, 256, 512]),
)
