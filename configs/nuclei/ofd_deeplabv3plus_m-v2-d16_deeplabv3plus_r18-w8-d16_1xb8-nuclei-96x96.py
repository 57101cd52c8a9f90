# OFD of the four stages, at its authors' positions in DeepLabV3+.
_base_ = ['../_base_/pairs/deeplabv3plus_m-v2-d16_deeplabv3plus_r18-w8-d16_nuclei.py', '../_base_/terms/nuclei.py']

model = dict(terms=dict(loss_ofd=_base_.ofd_term))
