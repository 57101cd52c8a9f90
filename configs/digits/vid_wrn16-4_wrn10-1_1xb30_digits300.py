# VID, with the usual weight.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_vid=dict(
            loss=dict(type='lckd_mm.VIDLoss'),
            on=['stage1', 'stage2', 'stage3'],
            weight=1.0,
        ),
    ),
)
