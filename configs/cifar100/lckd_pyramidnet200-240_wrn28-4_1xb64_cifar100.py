# Setting e, LONDON: OFD and Lipschitz matching, after the authors' later code.
# Their weight is alpha / 200 with alpha = 4.
_base_ = './ofd_pyramidnet200-240_wrn28-4_1xb64_cifar100.py'

model = dict(terms=dict(loss_lipschitz=dict(_base_.lipschitz_term, weight=0.02)))
custom_hooks = [dict(type='lckd_mm.LipschitzMonitorHook', interval=100)]
