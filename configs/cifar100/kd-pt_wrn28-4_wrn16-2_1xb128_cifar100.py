# Tang et al.: KD that keeps only the probability of the true class.
# The pair is setting c's; temperature, weight and what the kind is given are ours.
_base_ = './kd_wrn28-4_wrn16-2_1xb128_cifar100.py'

model = dict(terms=dict(loss_kd=dict(loss=dict(type='lckd_mm.PartialKDLoss', kind='pt'))))
custom_hooks = [dict(type='lckd_mm.GradientRescaleHook', term='loss_kd')]
