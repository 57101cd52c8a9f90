# DKD. Beta is one of those of its authors on CIFAR-100; without their warm-up.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_dkd=dict(
            loss=dict(type='lckd_mm.DKDLoss', tau=4.0, alpha=1.0, beta=2.0),
            on='logits',
            weight=1.0,
        ),
    ),
)
