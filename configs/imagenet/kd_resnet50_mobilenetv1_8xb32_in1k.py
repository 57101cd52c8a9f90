# KD: resnet50, with torchvision's weights, teaches mobilenetv1. Temperature and weight are ours.
_base_ = [
    './mobilenetv1_8xb32_in1k.py',
    '../_base_/models/resnet50_imagenet.py',
    '../_base_/terms/imagenet.py',
    '../_base_/taps/resnet.py',
    '../_base_/taps/mobilenetv1.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.resnet50, checkpoint='torchvision://resnet50'),
    student_taps=_base_.mobilenetv1_taps,
    teacher_taps=_base_.resnet_taps,
    terms=dict(
        loss_kd=_base_.kd_term,
    ),
)
