# The teacher: GFL on MobileNetV2, which begins with torchvision's weights of ImageNet.
_base_ = './gfl_r18-w8_1xb4-bccd-160x120.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(1, 2, 4, 6),
        norm_cfg=dict(type='BN'),
        init_cfg=dict(type='lckd_mm.TorchvisionInit', checkpoint='torchvision://mobilenet_v2'),
    ),
    neck=dict(in_channels=[24, 32, 96, 320], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64),
)
optim_wrapper = dict(optimizer=dict(lr=0.001))
param_scheduler = [dict(type='OneCycleLR', eta_max=0.001, total_steps=800, by_epoch=False)]
