# Terms of segmentation. OFD's weight is the authors' own of segmentation; the others are ours.
ofd_term = dict(
    loss=dict(type='lckd_mm.OFDLoss'),
    on=['stage1', 'stage2', 'stage3', 'stage4'],
    connector=dict(type='lckd_mm.ConvBN'),
    teacher_connector=dict(type='lckd_mm.MarginReLU'),
    weight=1e-5,
)
kd_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=4.0), on='logits', weight=0.5)
lipschitz_term = dict(
    loss=dict(type='lckd_mm.LipschitzLoss', gap='log'),
    on=['stage1', 'stage2', 'stage3', 'stage4'],
    connector='loss_ofd',
    weight=0.1,
)
