# KD of standardised scores, with the temperature and weight of most of its authors' runs on CIFAR-100.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_kd=dict(
            loss=dict(type='lckd_mm.KDLoss', tau=2.0, standardise=True),
            on='logits',
            weight=9.0,
        ),
    ),
)
