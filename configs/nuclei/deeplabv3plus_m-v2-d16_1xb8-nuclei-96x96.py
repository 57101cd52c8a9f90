# The teacher: DeepLabV3+ on MobileNetV2, which begins with torchvision's weights of ImageNet.
_base_ = './deeplabv3plus_r18-w8-d16_1xb8-nuclei-96x96.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        widen_factor=1.0,
        strides=(1, 2, 2, 2, 1, 1, 1),
        dilations=(1, 1, 1, 1, 1, 2, 2),
        out_indices=(1, 2, 4, 6),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,  # with the statistics of ImageNet
        init_cfg=dict(type='lckd_mm.TorchvisionInit', checkpoint='torchvision://mobilenet_v2'),
    ),
    decode_head=dict(
        in_channels=320, channels=96, c1_in_channels=24, c1_channels=24, norm_cfg=dict(type='GN', num_groups=8)
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.001))
param_scheduler = [dict(type='OneCycleLR', eta_max=0.001, total_steps=800, by_epoch=False)]
