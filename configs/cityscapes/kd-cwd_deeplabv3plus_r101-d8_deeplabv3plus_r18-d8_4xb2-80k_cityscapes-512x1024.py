# KD and CWD of the class scores, and CWD of the map before them: DeepLabV3+-R101-d8 teaches DeepLabV3+-R18-d8.
_base_ = [
    '../_base_/pairs/deeplabv3plus_r101-d8_deeplabv3plus_r18-d8_cityscapes.py',
    '../_base_/terms/segmentation.py',
    '../_base_/terms/cwd.py',
]

model = dict(terms=dict(loss_kd=_base_.kd_term, loss_cwd=_base_.cwd_term, loss_cwd_feature=_base_.cwd_feature_term))
