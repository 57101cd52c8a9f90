# SSD300 on ResNet50 alone, on VOC07+12. Data, augmentation, schedule and anchors are those of mmdet's SSD300 on VGG16.
#
# Ours, since no recipe of the papers' detectors is published: stages 2, 3 and 4 give the maps of strides 8, 16 and 32,
# and mmdet's SSDNeck adds three more, so that the sides are VGG16's 38, 19, 10, 5, 3 and 1. The backbone ends in
# BatchNorm, so that the L2 norm that SSD puts on VGG's first map is left out. Images are normalised as torchvision's
# weights expect.
_base_ = 'mmdet::pascal_voc/ssd300_voc0712.py'

model = dict(
    data_preprocessor=dict(std=[58.395, 57.12, 57.375]),
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    neck=dict(
        in_channels=(512, 1024, 2048),
        out_channels=(512, 1024, 2048, 512, 256, 256),
        level_strides=(2, 2, 1),
        level_paddings=(1, 1, 0),
        l2_norm_scale=None,
    ),
    bbox_head=dict(type='lckd_mm.SSDHead', in_channels=(512, 1024, 2048, 512, 256, 256)),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
