# CRD, with its authors' weight; negatives are fewer, for a set of 300 scans.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_crd=dict(
            loss=dict(type='lckd_mm.CRDLoss', samples=300, negatives=256),
            on='embedding',
            weight=0.8,
        ),
    ),
)
