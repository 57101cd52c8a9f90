# RetinaNet on ResNet50, by mmdet's own config, teaches the one on ResNet18.
_base_ = ['../../detection/retinanet-r18_8xb2_voc0712.py', '../taps/retinanet_resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py',
        checkpoint='work_dirs/retinanet_r50_fpn_1x_voc0712/epoch_4.pth',
    ),
    taps=_base_.retinanet_resnet_taps,
)
