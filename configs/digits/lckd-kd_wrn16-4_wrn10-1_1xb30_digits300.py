# KD and Lipschitz matching (log).
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_kd=dict(
            loss=dict(type='lckd_mm.KDLoss', tau=4.0),
            on='logits',
            weight=1.0,
        ),
        loss_lipschitz=dict(
            loss=dict(type='lckd_mm.LipschitzLoss', gap='log'),
            on=['stage1', 'stage2', 'stage3'],
            weight=1.0,
        ),
    ),
)
