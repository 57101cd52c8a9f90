# Setting a, LONDON: OFD and Lipschitz matching, after the authors' later code.
# Their weight is alpha / 200 with alpha = 0.8.
_base_ = './ofd_wrn28-4_wrn16-4_1xb128_cifar100.py'

model = dict(terms=dict(loss_lipschitz=dict(_base_.lipschitz_term, weight=0.004)))
custom_hooks = [
    # A quarter of the weight after 60 % of the training.
    dict(
        type='lckd_mm.LossWeightHook', term='loss_lipschitz', schedule='step', by='epoch', milestones=[0.6], gamma=0.25
    ),
    dict(type='lckd_mm.LipschitzMonitorHook', interval=100),
]
