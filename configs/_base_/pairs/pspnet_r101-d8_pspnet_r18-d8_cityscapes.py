# PSPNet-R101-d8 teaches PSPNet-R18-d8 on Cityscapes.
_base_ = ['mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', '../taps/pspnet_resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        # mmsegmentation's model index: mIoU 79.76 on Cityscapes val, single scale.
        checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/'
        'pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth',
    ),
    taps=dict(_base_.pspnet_resnet_taps, feature='decode_head.bottleneck'),
)
