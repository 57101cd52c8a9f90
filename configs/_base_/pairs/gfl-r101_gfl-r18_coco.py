# GFL on ResNet101 teaches the one on ResNet18 on COCO.
_base_ = ['../../coco/gfl-r18_8xb2-1x_coco.py', '../taps/gfl_resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        # mmdetection's model index: box AP 44.7 on COCO val2017.
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/'
        'gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
    ),
    taps=_base_.gfl_resnet_taps,
)
