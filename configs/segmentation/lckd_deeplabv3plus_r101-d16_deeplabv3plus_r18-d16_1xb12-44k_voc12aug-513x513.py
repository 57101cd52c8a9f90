# LONDON: OFD's recipe, and Lipschitz matching of the four stages through the same connectors.
#
# LONDON's segmentation code was never released: gap and weight are ours.
_base_ = './ofd_deeplabv3plus_r101-d16_deeplabv3plus_r18-d16_1xb12-44k_voc12aug-513x513.py'

model = dict(terms=dict(loss_lipschitz=_base_.lipschitz_term))
custom_hooks = [
    dict(type='lckd_mm.ConnectorWarmupHook', end=1, by='epoch'),
    dict(type='lckd_mm.LipschitzMonitorHook', interval=50),
]
