# OFD's segmentation recipe: six layers, divided by 8, 4, 2, 1, 1 and 16, weight 1e-5. KD is the one of the other pairs.
six_taps = ['stage1', 'stage2', 'stage3', 'stage4', 'aspp', 'decoder']
ofd_term = dict(
    loss=dict(type='lckd_mm.OFDLoss', layer_weights=[1 / 8, 1 / 4, 1 / 2, 1, 1, 1 / 16]),
    on=six_taps,
    connector=dict(type='lckd_mm.ConvBN'),
    teacher_connector=dict(type='lckd_mm.MarginReLU'),
    weight=1e-5,
)
kd_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=4.0), on='logits', weight=0.5)
