# IE over OFD: half of each stage's channels inherit the teacher's feature, the other half moves away from it.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

model = dict(
    terms=dict(
        loss_inherit=dict(
            loss=dict(type='lckd_mm.OFDLoss'),
            on=['stage1', 'stage2', 'stage3'],
            connector=dict(type='lckd_mm.ChannelPart', part='inherit', connector=dict(type='lckd_mm.ConvBN')),
            teacher_connector=dict(type='lckd_mm.MarginReLU'),
            weight=0.001,
        ),
        # Without a bound the negative of a squared distance has no minimum.
        loss_explore=dict(
            loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.OFDLoss'), form='saturating', bound=1000.0),
            on=['stage1', 'stage2', 'stage3'],
            connector=dict(type='lckd_mm.ChannelPart', part='explore', connector=dict(type='lckd_mm.ConvBN')),
            teacher_connector='loss_inherit',
            weight=0.001,
        ),
    ),
)
