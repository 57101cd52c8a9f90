# SSD300 on ResNet50 teaches SSD300 on MobileNetV1.
_base_ = ['../../detection/ssd300-mobilenetv1_8xb8_voc0712.py', '../taps/ssd_resnet.py', '../taps/ssd_mobilenetv1.py']

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
)
