# DIST, with the weight of ResNet34 to ResNet18 on ImageNet.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_dist=dict(
            loss=dict(type='lckd_mm.DISTLoss'),
            on='logits',
            weight=2.0,
        ),
    ),
)
