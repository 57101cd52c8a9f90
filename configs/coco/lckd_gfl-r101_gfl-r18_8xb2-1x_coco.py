# LONDON: OFD, and Lipschitz matching of the same connected stages.
_base_ = './ofd_gfl-r101_gfl-r18_8xb2-1x_coco.py'

model = dict(terms=dict(loss_lipschitz=_base_.fpn_lipschitz_term))
custom_hooks = [dict(type='lckd_mm.LipschitzMonitorHook', interval=50)]
