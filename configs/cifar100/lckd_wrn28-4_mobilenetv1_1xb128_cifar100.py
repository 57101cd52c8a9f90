# Setting g, LONDON: OFD and Lipschitz matching, after the authors' later code.
# Their weight is alpha / 200 with alpha = 1 (ours: none is published).
_base_ = './ofd_wrn28-4_mobilenetv1_1xb128_cifar100.py'

model = dict(terms=dict(loss_lipschitz=dict(_base_.lipschitz_term, weight=0.005)))
custom_hooks = [dict(type='lckd_mm.LipschitzMonitorHook', interval=100)]
