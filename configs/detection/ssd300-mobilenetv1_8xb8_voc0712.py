# SSD300 on MobileNetV1 alone, on VOC07+12: blocks 5, 11 and 13 give the maps of strides 8, 16 and 32 (our choice).
#
# No weights of this MobileNetV1 are published: it begins with those of configs/imagenet/mobilenetv1_8xb32_in1k.py.
_base_ = './ssd300-r50_8xb8_voc0712.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='lckd_mm.MobileNetV1',
        out_indices=(5, 11, 13),
        init_cfg=dict(
            type='Pretrained', checkpoint='work_dirs/mobilenetv1_8xb32_in1k/epoch_100.pth', prefix='backbone.'
        ),
    ),
    neck=dict(in_channels=(256, 512, 1024), out_channels=(256, 512, 1024, 512, 256, 256)),
    bbox_head=dict(in_channels=(256, 512, 1024, 512, 256, 256)),
)
