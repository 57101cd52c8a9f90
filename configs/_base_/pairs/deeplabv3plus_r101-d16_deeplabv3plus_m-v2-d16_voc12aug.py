# DeepLabV3+ on ResNet-101 teaches the one on MobileNetV2.
_base_ = ['../../segmentation/deeplabv3plus_m-v2-d16_1xb12-44k_voc12aug-513x513.py', '../taps/deeplabv3plus.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='configs/segmentation/deeplabv3plus_r101-d16_1xb12-44k_voc12aug-513x513.py',
        checkpoint='work_dirs/deeplabv3plus_r101-d16_1xb12-44k_voc12aug-513x513/iter_44100.pth',
    ),
    student_taps=_base_.deeplabv3plus_mobilenetv2_taps,
    teacher_taps=_base_.deeplabv3plus_taps,
)
