# Terms of the pair on Fashion-MNIST. Weights are parts of the loss at the start: the same for all terms of scores, and
# for all terms of features.
kd_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=4.0), on='logits', weight='start:0.9')
ofd_term = dict(
    loss=dict(type='lckd_mm.OFDLoss'),
    on=['stage1', 'stage2', 'stage3'],
    connector=dict(type='lckd_mm.ConvBN'),
    teacher_connector=dict(type='lckd_mm.MarginReLU'),
    weight='start:0.9',
)
