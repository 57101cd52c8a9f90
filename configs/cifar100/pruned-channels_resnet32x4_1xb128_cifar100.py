# Blakeney et al.: ResNet32x4, trained alone, then 45 % of the channels pruned. Length and ramp are ours.
_base_ = ['./resnet32x4_1xb128_cifar100.py']

load_from = 'work_dirs/resnet32x4_1xb128_cifar100/epoch_200.pth'
custom_hooks = [
    dict(type='lckd_mm.PruningHook', kind='structured', sparsity=0.45, end=0.5, interval=391),
]
