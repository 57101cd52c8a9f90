# DeepLabV3+-R101-d8 teaches DeepLabV3+-R18-d8 on Cityscapes.
_base_ = ['mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py', '../taps/deeplabv3plus.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmseg::deeplabv3plus/deeplabv3plus_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        # mmsegmentation's model index: mIoU 80.97 on Cityscapes val, single scale.
        checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3plus/'
        'deeplabv3plus_r101-d8_512x1024_80k_cityscapes/'
        'deeplabv3plus_r101-d8_512x1024_80k_cityscapes_20200606_114143-068fcfe9.pth',
    ),
    taps=dict(_base_.deeplabv3plus_taps, feature='decode_head.sep_bottleneck'),
)
