# IE over AT: resnet56 teaches resnet20.
_base_ = ['../_base_/pairs/resnet56_resnet20_cifar100.py', '../_base_/terms/ie.py']

model = dict(terms=_base_.ie_at_terms)
