# WRN28-4 teaches WRN16-4 on CIFAR-100 by LONDON's recipe, its setting a. Train the teacher first:
# python tools/train.py configs/cifar100/wrn28-4_1xb128_cifar100.py
_base_ = './cifar100/lckd_wrn28-4_wrn16-4_1xb128_cifar100.py'
