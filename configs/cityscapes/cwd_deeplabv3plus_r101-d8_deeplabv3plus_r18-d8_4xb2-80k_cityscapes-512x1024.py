# CWD of the class scores: DeepLabV3+-R101-d8 teaches DeepLabV3+-R18-d8.
_base_ = [
    '../_base_/pairs/deeplabv3plus_r101-d8_deeplabv3plus_r18-d8_cityscapes.py',
    '../_base_/terms/cwd.py',
]

model = dict(terms=dict(loss_cwd=_base_.cwd_term))
