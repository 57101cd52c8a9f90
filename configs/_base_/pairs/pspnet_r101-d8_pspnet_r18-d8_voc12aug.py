# PSPNet-R101-d8 teaches PSPNet-R18-d8 on VOC2012 + SBD.
_base_ = ['../../segmentation/pspnet_r18-d8_4xb4-20k_voc12aug-512x512.py', '../taps/pspnet_resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmseg::pspnet/pspnet_r101-d8_4xb4-20k_voc12aug-512x512.py',
        # mmsegmentation's model index: mIoU 78.47 on VOC2012 val, single scale.
        checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x512_20k_voc12aug/'
        'pspnet_r101-d8_512x512_20k_voc12aug_20200617_102003-4aef3c9a.pth',
    ),
    taps=_base_.pspnet_resnet_taps,
)
