# IE: half of the last stage's channels inherit the teacher's factor, the other half moves away from it.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_inherit=dict(
            loss=dict(type='lckd_mm.FTLoss'),
            on='stage3',
            connector=dict(type='lckd_mm.ChannelPart', part='inherit', connector=dict(type='lckd_mm.FactorEncoder')),
            teacher_connector=dict(type='lckd_mm.AutoEncoder', batches=300),
            weight=50.0,
        ),
        loss_explore=dict(
            loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.FTLoss')),
            on='stage3',
            connector=dict(type='lckd_mm.ChannelPart', part='explore', connector=dict(type='lckd_mm.FactorEncoder')),
            teacher_connector='loss_inherit',
            weight=50.0,
        ),
    ),
)
