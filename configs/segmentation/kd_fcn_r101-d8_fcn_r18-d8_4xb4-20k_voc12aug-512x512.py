# KD: FCN-R101-d8 teaches FCN-R18-d8.
_base_ = ['./fcn_r18-d8_4xb4-20k_voc12aug-512x512.py', '../_base_/taps/fcn_resnet.py']

kd_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=4.0), on='logits', weight=0.5)
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
    terms=dict(loss_kd=kd_term),
)
