# Faster R-CNN on ResNet101 alone, the teacher of ResNet50.
_base_ = './faster-rcnn-r50_8xb2_voc0712.py'

model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
