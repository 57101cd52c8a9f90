# Faster R-CNN on ResNet50 alone: mmdet's own config on VOC07+12, with a fixed seed.
_base_ = 'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py'

default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
