# Tang et al.: KD that keeps only the similarities of the rows of the teacher's logit layer.
# The pair is setting c's; temperature, weight and what the kind is given are ours.
_base_ = './kd_wrn28-4_wrn16-2_1xb128_cifar100.py'

model = dict(terms=dict(loss_kd=dict(loss=dict(type='lckd_mm.PartialKDLoss', kind='sim', alpha=0.5, beta=0.3))))
custom_hooks = [dict(type='lckd_mm.GradientRescaleHook', term='loss_kd')]
