# KD: RetinaNet on ResNet50 teaches the one on ResNet18 the class scores of all anchors.
_base_ = [
    './retinanet-r18_8xb2_voc0712.py',
    '../_base_/terms/fpn_detectors.py',
    '../_base_/taps/retinanet_resnet.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py',
        checkpoint='work_dirs/retinanet_r50_fpn_1x_voc0712/epoch_4.pth',
    ),
    taps=_base_.retinanet_resnet_taps,
    terms=dict(
        loss_kd=_base_.fpn_kd_term,
    ),
)
