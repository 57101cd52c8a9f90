# OFD of four stages, before a ReLU where they have one.
_base_ = ['../_base_/pairs/gfl_m-v2_gfl_r18-w8_bccd.py', '../_base_/terms/bccd.py']

model = dict(terms=dict(loss_ofd=_base_.ofd_term))
