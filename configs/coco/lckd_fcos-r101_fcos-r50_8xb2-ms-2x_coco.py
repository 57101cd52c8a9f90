# LONDON: OFD, and Lipschitz matching of the same connected stages.
_base_ = './ofd_fcos-r101_fcos-r50_8xb2-ms-2x_coco.py'

model = dict(terms=dict(loss_lipschitz=_base_.fpn_lipschitz_term))
custom_hooks = [dict(type='lckd_mm.LipschitzMonitorHook', interval=50)]
