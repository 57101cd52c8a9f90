# LONDON: OFD, and Lipschitz matching of the same connected stages.
_base_ = './ofd_ssd300-r50_ssd300-mobilenetv1_8xb8_voc0712.py'

model = dict(terms=dict(loss_lipschitz=_base_.ssd_lipschitz_term))
custom_hooks = [
    dict(type='NumClassCheckHook'),
    dict(type='CheckInvalidLossHook', interval=50, priority='VERY_LOW'),
    dict(type='lckd_mm.LipschitzMonitorHook', interval=50),
]
