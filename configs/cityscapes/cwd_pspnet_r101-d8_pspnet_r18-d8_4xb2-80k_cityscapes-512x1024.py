# CWD of the class scores: PSPNet-R101-d8 teaches PSPNet-R18-d8.
_base_ = [
    '../_base_/pairs/pspnet_r101-d8_pspnet_r18-d8_cityscapes.py',
    '../_base_/terms/cwd.py',
]

model = dict(terms=dict(loss_cwd=_base_.cwd_term))
