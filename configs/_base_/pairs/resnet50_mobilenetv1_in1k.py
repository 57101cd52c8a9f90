# resnet50, with torchvision's weights, teaches mobilenetv1.
_base_ = [
    '../../imagenet/mobilenetv1_8xb32_in1k.py',
    '../models/resnet50_imagenet.py',
    '../taps/resnet.py',
    '../taps/mobilenetv1.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.resnet50, checkpoint='torchvision://resnet50'),
    student_taps=_base_.mobilenetv1_taps,
    teacher_taps=_base_.resnet_taps,
)
