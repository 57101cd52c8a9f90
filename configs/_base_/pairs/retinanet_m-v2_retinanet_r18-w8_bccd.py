# RetinaNet on MobileNetV2 teaches the one on ResNet-18 of an eighth of the width, on BCCD.
_base_ = ['../../bccd/retinanet_r18-w8_1xb4-bccd-160x120.py', '../taps/bccd_detectors.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/bccd/retinanet_m-v2_1xb4-bccd-160x120.py',
        checkpoint='work_dirs/bccd/seed0/teacher/iter_800.pth',
    ),
    taps=_base_.retinanet_resnet_taps,
    teacher_taps=_base_.retinanet_mobilenetv2_taps,
    dry_run_size=128,
)
