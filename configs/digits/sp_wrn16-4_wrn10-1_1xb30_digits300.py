# SP: similarities between the samples of a batch, of the last map, with mdistiller's weight.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_sp=dict(
            loss=dict(type='lckd_mm.SPLoss'),
            on='stage3',
            weight=3000.0,
        ),
    ),
)
