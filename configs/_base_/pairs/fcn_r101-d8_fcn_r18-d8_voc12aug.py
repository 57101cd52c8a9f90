# FCN-R101-d8 teaches FCN-R18-d8 on VOC2012 + SBD.
_base_ = ['../../segmentation/fcn_r18-d8_4xb4-20k_voc12aug-512x512.py', '../taps/fcn_resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmseg::fcn/fcn_r101-d8_4xb4-20k_voc12aug-512x512.py',
        # mmsegmentation's model index: mIoU 71.16 on VOC2012 val, single scale.
        checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/fcn/fcn_r101-d8_512x512_20k_voc12aug/'
        'fcn_r101-d8_512x512_20k_voc12aug_20200617_010842-0bb4e798.pth',
    ),
    taps=_base_.fcn_resnet_taps,
)
