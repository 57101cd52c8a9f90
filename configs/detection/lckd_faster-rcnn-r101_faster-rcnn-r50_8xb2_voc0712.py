# Faster R-CNN on ResNet101 teaches the one on ResNet50: Lipschitz matching of the stages, and of the pyramid.
_base_ = [
    './faster-rcnn-r50_8xb2_voc0712.py',
    '../_base_/terms/fpn_detectors.py',
    '../_base_/taps/faster_rcnn_resnet.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/detection/faster-rcnn-r101_8xb2_voc0712.py',
        checkpoint='work_dirs/faster-rcnn-r101_8xb2_voc0712/epoch_4.pth',
    ),
    taps=_base_.faster_rcnn_resnet_taps,
    terms=dict(
        loss_lipschitz=_base_.fpn_lipschitz_term,
        loss_lipschitz_pyramid=dict(_base_.fpn_pyramid_term, on=['p2', 'p3', 'p4', 'p5', 'p6']),
    ),
)
custom_hooks = [
    dict(type='lckd_mm.LipschitzMonitorHook', interval=50),
]
