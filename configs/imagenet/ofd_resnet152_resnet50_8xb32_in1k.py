# OFD: resnet152, with torchvision's weights and on batch statistics, teaches resnet50.
_base_ = ['../_base_/pairs/resnet152_resnet50_in1k.py', '../_base_/terms/imagenet.py']

model = dict(teacher=dict(bn='batch'), terms=dict(loss_ofd=_base_.ofd_term))
