# IE over the factor of an auto-encoder; its 30 epochs need be run once only, see README.md: resnet56 teaches resnet20.
_base_ = ['../_base_/pairs/resnet56_resnet20_cifar100.py', '../_base_/terms/ie.py']

model = dict(terms=_base_.ie_terms)
