# KD: resnet50, with torchvision's weights, teaches mobilenetv1. Temperature and weight are ours.
_base_ = ['../_base_/pairs/resnet50_mobilenetv1_in1k.py', '../_base_/terms/imagenet.py']

model = dict(terms=dict(loss_kd=_base_.kd_term))
