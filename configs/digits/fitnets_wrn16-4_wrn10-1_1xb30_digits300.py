# FitNets.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_fitnets=dict(
            loss=dict(type='lckd_mm.FitNetsLoss'),
            on='stage3',
            connector=dict(type='lckd_mm.ConvBN'),
            weight=1.0,
        ),
    ),
)
