# OFD: resnet50, with torchvision's weights and on batch statistics, teaches mobilenetv1.
_base_ = ['../_base_/pairs/resnet50_mobilenetv1_in1k.py', '../_base_/terms/imagenet.py']

model = dict(teacher=dict(bn='batch'), terms=dict(loss_ofd=_base_.ofd_term))
