# resnet152, with torchvision's weights, teaches resnet50.
_base_ = ['../../imagenet/resnet50_8xb32_in1k.py', '../models/resnet152_imagenet.py', '../taps/resnet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(model=_base_.resnet152, checkpoint='torchvision://resnet152'),
    taps=_base_.resnet_taps,
)
