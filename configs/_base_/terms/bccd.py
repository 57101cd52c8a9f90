# Terms of the pairs on BCCD. Weights are parts of the loss at the start: the same for all terms of scores and boxes,
# and for all terms of features.
kd_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=2.0), on='logits', weight='start:0.5')
ofd_term = dict(
    loss=dict(type='lckd_mm.OFDLoss'),
    on=['stage1', 'stage2', 'stage3', 'stage4'],
    connector=dict(type='lckd_mm.ConvBN'),
    teacher_connector=dict(type='lckd_mm.MarginReLU'),
    weight='start:0.2',
)
