# RetinaNet on ResNet101 teaches the one on ResNet50 on COCO.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_2x_coco.py', '../taps/retinanet_resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        # mmdetection's model index: box AP 38.9 on COCO val2017.
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/'
        'retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
    ),
    taps=_base_.retinanet_resnet_taps,
)
