# OFD.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_ofd=dict(
            loss=dict(type='lckd_mm.OFDLoss'),
            on=['stage1', 'stage2', 'stage3'],
            connector=dict(type='lckd_mm.ConvBN'),
            teacher_connector=dict(type='lckd_mm.MarginReLU'),
            weight=0.001,
        ),
    ),
)
