# LONDON: OFD, and Lipschitz matching of the same connected stages.
_base_ = './ofd_deeplabv3plus_r101-d8_deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py'

model = dict(terms=dict(loss_lipschitz=_base_.lipschitz_term))
custom_hooks = [dict(type='lckd_mm.LipschitzMonitorHook', interval=50)]
