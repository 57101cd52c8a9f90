# LONDON: OFD, and Lipschitz matching of the same connected stages.
#
# LONDON's segmentation code was never released: gap and weight are ours, chosen on digit scenes (docs/studies.md).
_base_ = './ofd_pspnet_r101-d8_pspnet_r18-d8_4xb4-20k_voc12aug-512x512.py'

model = dict(terms=dict(loss_lipschitz=_base_.lipschitz_term))
custom_hooks = [dict(type='lckd_mm.LipschitzMonitorHook', interval=50)]
