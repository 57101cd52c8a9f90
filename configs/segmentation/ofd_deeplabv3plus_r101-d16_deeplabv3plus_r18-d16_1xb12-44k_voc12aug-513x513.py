# OFD's segmentation recipe: DeepLabV3+ on ResNet-101 teaches the one on ResNet-18.
#
# The teacher uses the batch's statistics, and the first epoch trains the connectors alone. Train the teacher first, by
# its own config: OFD's is not to be had in mmsegmentation's format.
_base_ = [
    '../_base_/pairs/deeplabv3plus_r101-d16_deeplabv3plus_r18-d16_voc12aug.py',
    '../_base_/terms/deeplabv3plus.py',
]

model = dict(teacher=dict(bn='batch'), terms=dict(loss_ofd=_base_.ofd_term))
custom_hooks = [dict(type='lckd_mm.ConnectorWarmupHook', end=1, by='epoch')]
