# Tang et al.: KD that keeps only CIFAR-100's super-classes.
# The pair is setting c's; temperature, weight and what the kind is given are ours.
_base_ = ['./kd_wrn28-4_wrn16-2_1xb128_cifar100.py', '../_base_/datasets/cifar100_superclasses.py']

model = dict(
    terms=dict(
        loss_kd=dict(
            loss=dict(
                type='lckd_mm.PartialKDLoss', kind='rel', betas=(0.6, 0.05), superclasses=_base_.cifar100_superclasses
            )
        )
    )
)
custom_hooks = [dict(type='lckd_mm.GradientRescaleHook', term='loss_kd')]
