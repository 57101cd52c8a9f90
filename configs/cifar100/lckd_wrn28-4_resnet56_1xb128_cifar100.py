# Setting d, LONDON: OFD and Lipschitz matching, after the authors' later code.
# Their weight is alpha / 200 with alpha = 1.
_base_ = './ofd_wrn28-4_resnet56_1xb128_cifar100.py'

model = dict(terms=dict(loss_lipschitz=dict(_base_.lipschitz_term, weight=0.005)))
custom_hooks = [
    # Twice of the weight after 60 % of the training.
    dict(
        type='lckd_mm.LossWeightHook', term='loss_lipschitz', schedule='step', by='epoch', milestones=[0.6], gamma=2.0
    ),
    dict(type='lckd_mm.LipschitzMonitorHook', interval=100),
]
