# FCN-R101-d8 teaches FCN-R18-d8 on VOC2012 + SBD: Lipschitz matching of the four stages, and KD on the class scores.
#
# The student's own baseline is inherited and trains alone; this file differs from it by the distillation only.
# No published run of this pair exists: LONDON released no segmentation, and its tables use DeepLabV3+.
_base_ = ['./segmentation/fcn_r18-d8_4xb4-20k_voc12aug-512x512.py', './_base_/taps/fcn_resnet.py']

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
    terms=dict(
        loss_lipschitz=dict(
            loss=dict(type='lckd_mm.LipschitzLoss', gap='log'),
            on=['stage1', 'stage2', 'stage3', 'stage4'],
            weight=0.1,
        ),
        loss_kd=dict(loss=dict(type='lckd_mm.KDLoss', tau=4.0), on='logits', weight=0.5),
    ),
)

default_hooks = dict(
    distillation=dict(type='lckd_mm.DistillationHook'),
    lipschitz=dict(type='lckd_mm.LipschitzMonitorHook', interval=50),
)
