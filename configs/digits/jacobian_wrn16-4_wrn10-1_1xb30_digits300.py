# Jacobian matching, under input noise.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_jacobian=dict(
            loss=dict(type='lckd_mm.JacobianLoss', mode='noise', sigma=0.1),
            on='logits',
            weight=1.0,
        ),
    ),
)
