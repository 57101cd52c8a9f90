# KD: resnet152, with torchvision's weights, teaches resnet50. Temperature and weight are ours.
_base_ = [
    './resnet50_8xb32_in1k.py',
    '../_base_/models/resnet152_imagenet.py',
    '../_base_/terms/imagenet.py',
    '../_base_/taps/resnet.py',
]

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.resnet152, checkpoint='torchvision://resnet152'),
    taps=_base_.resnet_taps,
    terms=dict(
        loss_kd=_base_.kd_term,
    ),
)
