# Faster R-CNN on ResNet101 teaches the one on ResNet50 on COCO.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py', '../taps/faster_rcnn_resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        # mmdetection's model index: box AP 39.8 on COCO val2017.
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/'
        'faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth',
    ),
    taps=_base_.faster_rcnn_resnet_taps,
)
