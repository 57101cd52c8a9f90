# AT.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_at=dict(
            loss=dict(type='lckd_mm.ATLoss'),
            on=['stage1', 'stage2', 'stage3'],
            weight=1000.0,
        ),
    ),
)
