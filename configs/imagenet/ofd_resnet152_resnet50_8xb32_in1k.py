# OFD: resnet152, with torchvision's weights and on batch statistics, teaches resnet50.
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
    teacher=dict(model=_base_.resnet152, checkpoint='torchvision://resnet152', bn='batch'),
    taps=_base_.resnet_taps,
    terms=dict(
        loss_ofd=_base_.ofd_term,
    ),
)
