# IE-KD: the two halves of a student's channels. Over the factor, the weights of 50 are said to be the authors' (a
# secondary source; a config of their code has 1), and their feature is behind the stage's last ReLU, here before it.
# The other weights are ours, untuned: AT's (1000 for each of three layers) and OFD's own for the inheriting half, a
# tenth or less for the other. OFD has no upper bound, and so is turned around only up to one.
ie_terms = dict(
    loss_inherit=dict(
        loss=dict(type='lckd_mm.FTLoss'),
        on='stage3',
        connector=[dict(type='lckd_mm.ChannelPart', part='inherit'), dict(type='lckd_mm.FactorEncoder')],
        teacher_connector=dict(type='lckd_mm.AutoEncoder', batches=30 * 391),  # 30 epochs of 128 images
        weight=50.0,
    ),
    loss_explore=dict(
        loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.FTLoss')),
        on='stage3',
        connector=[dict(type='lckd_mm.ChannelPart', part='explore'), dict(type='lckd_mm.FactorEncoder')],
        teacher_connector='loss_inherit',
        weight=50.0,
    ),
)
ie_at_terms = dict(
    loss_inherit=dict(
        loss=dict(type='lckd_mm.ATLoss'),
        on=['stage1', 'stage2', 'stage3'],
        connector=dict(type='lckd_mm.ChannelPart', part='inherit'),
        weight=3000.0,
    ),
    loss_explore=dict(
        loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.ATLoss')),
        on=['stage1', 'stage2', 'stage3'],
        connector=dict(type='lckd_mm.ChannelPart', part='explore'),
        weight=10.0,
    ),
)
ie_ofd_terms = dict(
    loss_inherit=dict(
        loss=dict(type='lckd_mm.OFDLoss'),
        on=['stage1', 'stage2', 'stage3'],
        connector=[dict(type='lckd_mm.ChannelPart', part='inherit'), dict(type='lckd_mm.ConvBN')],
        teacher_connector=dict(type='lckd_mm.MarginReLU'),
        weight=1e-3,
    ),
    loss_explore=dict(
        loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.OFDLoss'), form='saturating', bound=1000.0),
        on=['stage1', 'stage2', 'stage3'],
        connector=[dict(type='lckd_mm.ChannelPart', part='explore'), dict(type='lckd_mm.ConvBN')],
        teacher_connector='loss_inherit',
        weight=1e-3,
    ),
)
