# OFD with the authors' weight; KD, whose temperature and weight are ours. LONDON's Lipschitz matching is after the
# authors' later code (edition C1), whose gradient flows: their weight is 2000 / (10000 B) of a sum over their G GPUs,
# each the mean over its part of the batch; B is 96, G is 4 in their README's command and 2 in their script. Absolute
# gaps; the student's connected map is multiplied with the next raw one.
ofd_term = dict(
    loss=dict(type='lckd_mm.OFDLoss'),
    on=['stage1', 'stage2', 'stage3', 'stage4'],
    connector=dict(type='lckd_mm.ConvBN'),
    teacher_connector=dict(type='lckd_mm.MarginReLU'),
    weight=1e-4,
)
kd_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=4.0), on='logits', weight=1.0)
lipschitz_term = dict(
    loss=dict(type='lckd_mm.LONDONLoss'),
    on=['stage1', 'stage2', 'stage3', 'stage4'],
    connector='loss_ofd',
    weight=4 * 2000 / (10000 * 96),
)
