# OFD's segmentation recipe: six layers, divided by 8, 4, 2, 1, 1 and 16. All else is as in the other pairs.
_base_ = './segmentation.py'

ofd_term = dict(
    loss=dict(layer_weights=[1 / 8, 1 / 4, 1 / 2, 1, 1, 1 / 16]),
    on=['stage1', 'stage2', 'stage3', 'stage4', 'aspp', 'decoder'],
)
