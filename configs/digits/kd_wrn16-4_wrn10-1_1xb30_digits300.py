# KD.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_kd=dict(
            loss=dict(type='lckd_mm.KDLoss', tau=4.0),
            on='logits',
            weight=1.0,
        ),
    ),
)
