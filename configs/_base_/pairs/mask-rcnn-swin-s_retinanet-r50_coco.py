# Mask R-CNN on Swin-S teaches RetinaNet on ResNet50 on COCO: two kinds of detectors, so that pyramids are all that is
# compared. The teacher's begins at stride 4, the student's at stride 8.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_2x_coco.py', '../taps/retinanet_resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py',
        # mmdetection's model index: box AP 48.2 on COCO val2017.
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/swin/'
        'mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco/'
        'mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco_20210903_104808-b92c91f1.pth',
    ),
    student_taps=_base_.retinanet_resnet_taps,
    teacher_taps=dict(p3='neck[1]', p4='neck[2]', p5='neck[3]', p6='neck[4]'),
)
