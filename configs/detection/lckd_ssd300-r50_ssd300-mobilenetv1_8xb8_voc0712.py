# SSD300 on ResNet50 teaches SSD300 on MobileNetV1: Lipschitz matching of the stages, and of the six maps.
_base_ = [
    './ssd300-mobilenetv1_8xb8_voc0712.py',
    '../_base_/terms/ssd300.py',
    '../_base_/taps/ssd_resnet.py',
    '../_base_/taps/ssd_mobilenetv1.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/detection/ssd300-r50_8xb8_voc0712.py',
        checkpoint='work_dirs/ssd300-r50_8xb8_voc0712/epoch_24.pth',
    ),
    taps=_base_.ssd_resnet_taps,
    student_taps=_base_.ssd_mobilenetv1_stages,
    dry_run_size=300,  # smaller images leave nothing for the last map
    terms=dict(
        loss_lipschitz=_base_.ssd_lipschitz_term,
        loss_lipschitz_pyramid=_base_.ssd_pyramid_term,
    ),
)
custom_hooks = [
    dict(type='NumClassCheckHook'),
    dict(type='CheckInvalidLossHook', interval=50, priority='VERY_LOW'),
    dict(type='lckd_mm.LipschitzMonitorHook', interval=50),
]
