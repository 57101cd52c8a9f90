# Lipschitz matching, absolute gaps.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_lipschitz=dict(
            loss=dict(type='lckd_mm.LipschitzLoss', gap='absolute'),
            on=['stage1', 'stage2', 'stage3'],
            weight=0.002,
        ),
    ),
)
