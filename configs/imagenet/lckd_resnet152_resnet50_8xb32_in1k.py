# LONDON: OFD and Lipschitz matching, after the authors' later code.
_base_ = './ofd_resnet152_resnet50_8xb32_in1k.py'

model = dict(terms=dict(loss_lipschitz=_base_.lipschitz_term))
custom_hooks = [dict(type='lckd_mm.LipschitzMonitorHook', interval=100)]
