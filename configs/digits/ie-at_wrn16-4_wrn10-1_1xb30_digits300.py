# IE over AT: half of each stage's channels inherit the teacher's attention, the other half looks elsewhere.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_inherit=dict(
            loss=dict(type='lckd_mm.ATLoss'),
            on=['stage1', 'stage2', 'stage3'],
            connector=dict(type='lckd_mm.ChannelPart', part='inherit'),
            weight=1000.0,
        ),
        loss_explore=dict(
            loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.ATLoss')),
            on=['stage1', 'stage2', 'stage3'],
            connector=dict(type='lckd_mm.ChannelPart', part='explore'),
            weight=10.0,
        ),
    ),
)
