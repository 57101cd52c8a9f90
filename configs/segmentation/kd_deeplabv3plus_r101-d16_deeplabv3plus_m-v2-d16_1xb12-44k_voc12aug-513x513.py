# KD: DeepLabV3+ on ResNet-101 teaches the one on MobileNetV2.
_base_ = [
    '../_base_/pairs/deeplabv3plus_r101-d16_deeplabv3plus_m-v2-d16_voc12aug.py',
    '../_base_/terms/deeplabv3plus.py',
]

model = dict(terms=dict(loss_kd=_base_.kd_term))
