# Terms of the demo on RetinaNet. Next to all positions are background: the mean of KD over them is small.
ofd_term = dict(
    loss=dict(type='lckd_mm.OFDLoss'),
    on=['stage1', 'stage2', 'stage3'],
    connector=dict(type='lckd_mm.ConvBN'),
    teacher_connector=dict(type='lckd_mm.MarginReLU'),
    weight=1e-3,
)
kd_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=2.0), on='logits', weight=20.0)
lipschitz_term = dict(
    loss=dict(type='lckd_mm.LipschitzLoss', gap='log'),
    on=['stage1', 'stage2', 'stage3'],
    connector='loss_ofd',
    weight=0.1,
)
