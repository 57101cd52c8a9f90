# Terms of the demo on FCN.
ofd_term = dict(
    loss=dict(type='lckd_mm.OFDLoss'),
    on=['stage1', 'stage2', 'stage3', 'stage4'],
    connector=dict(type='lckd_mm.ConvBN'),
    teacher_connector=dict(type='lckd_mm.MarginReLU'),
    weight=3e-5,
)
kd_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=2.0), on='logits', weight=1.0)
lipschitz_term = dict(
    loss=dict(type='lckd_mm.LipschitzLoss', gap='log'),
    on=['stage1', 'stage2', 'stage3', 'stage4'],
    connector='loss_ofd',
    weight=0.1,
)
