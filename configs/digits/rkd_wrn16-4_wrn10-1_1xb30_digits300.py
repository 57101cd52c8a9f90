# RKD.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_rkd=dict(
            loss=dict(type='lckd_mm.RKDLoss'),
            on='embedding',
            weight=0.1,
        ),
    ),
)
