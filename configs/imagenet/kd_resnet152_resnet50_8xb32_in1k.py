# KD: resnet152, with torchvision's weights, teaches resnet50. Temperature and weight are ours.
_base_ = ['../_base_/pairs/resnet152_resnet50_in1k.py', '../_base_/terms/imagenet.py']

model = dict(terms=dict(loss_kd=_base_.kd_term))
