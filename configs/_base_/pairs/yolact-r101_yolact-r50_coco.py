# YOLACT on ResNet101 teaches the one on ResNet50 on COCO. Each anchor has a softmax with background.
_base_ = ['mmdet::yolact/yolact_r50_1xb8-55e_coco.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmdet::yolact/yolact_r101_1xb8-55e_coco.py',
        # mmdetection's model index: mask AP 30.4 on COCO val2017.
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/yolact/yolact_r101_1x8_coco/'
        'yolact_r101_1x8_coco_20200908-4cbe9101.pth',
    ),
    taps=dict(p3='neck[0]', p4='neck[1]', p5='neck[2]', p6='neck[3]', logits='bbox_head.conv_cls#*'),
)
