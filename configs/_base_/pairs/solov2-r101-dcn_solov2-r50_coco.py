# SOLOv2 on ResNet101, with deformable convolutions, teaches the one on ResNet50 on COCO. Both have the class scores of
# the cells of five grids, 40 x 40 to 12 x 12, whatever the size of the image.
_base_ = ['mmdet::solov2/solov2_r50_fpn_ms-3x_coco.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmdet::solov2/solov2_r101-dcn_fpn_ms-3x_coco.py',
        # mmdetection's model index: mask AP 41.2 on COCO val2017.
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/solov2/solov2_r101_dcn_fpn_3x_coco/'
        'solov2_r101_dcn_fpn_3x_coco_20220513_214734-16c966cb.pth',
    ),
    taps=dict(p2='neck[0]', p3='neck[1]', p4='neck[2]', p5='neck[3]', logits='mask_head.conv_cls#*'),
)
