# AB.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_ab=dict(
            loss=dict(type='lckd_mm.ABLoss'),
            on=['stage1', 'stage2', 'stage3'],
            connector=dict(type='lckd_mm.ConvBN'),
            weight=0.001,
        ),
    ),
)
