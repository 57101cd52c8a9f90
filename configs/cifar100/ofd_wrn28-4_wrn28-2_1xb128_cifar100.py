# Setting b, OFD: wrn28-4 teaches wrn28-2, on batch statistics as the authors run it.
# The released script of LONDON trains WRN16-4 from another teacher here; this is OFD's pair.
_base_ = ['../_base_/pairs/wrn28-4_wrn28-2_cifar100.py', '../_base_/terms/cifar100.py']

model = dict(teacher=dict(bn='batch'), terms=dict(loss_ofd=_base_.ofd_term))
