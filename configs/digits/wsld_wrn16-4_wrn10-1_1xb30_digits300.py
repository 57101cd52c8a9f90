# WSLD, with its authors' temperature and weight on ImageNet.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_wsld=dict(
            loss=dict(type='lckd_mm.WSLDLoss', tau=2.0),
            on='logits',
            weight=2.5,
        ),
    ),
)
