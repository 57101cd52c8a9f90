# What the recipe of the one line chooses: OFD of the stages' ends.
_base_ = ['../_base_/pairs/retinanet_m-v2_retinanet_m-v2-w25_bccd.py', '../_base_/terms/bccd.py']

model = dict(taps='backbone', terms=dict(loss_ofd=dict(_base_.ofd_term, weight='start:0.95')))
