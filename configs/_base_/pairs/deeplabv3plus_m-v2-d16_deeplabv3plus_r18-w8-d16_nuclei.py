# DeepLabV3+ on MobileNetV2 teaches the one on a narrow ResNet-18, on nuclei.
_base_ = ['../../nuclei/deeplabv3plus_r18-w8-d16_1xb8-nuclei-96x96.py', '../taps/deeplabv3plus.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/nuclei/deeplabv3plus_m-v2-d16_1xb8-nuclei-96x96.py',
        checkpoint='work_dirs/nuclei/seed0/teacher/iter_800.pth',
    ),
    student_taps=_base_.deeplabv3plus_taps,
    teacher_taps=_base_.deeplabv3plus_mobilenetv2_taps,
    dry_run_size=96,
)
