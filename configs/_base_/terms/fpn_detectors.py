# Terms of detectors with a feature pyramid. Temperatures and weights are ours, untuned; but OFD's weight is the
# authors' of segmentation, whose maps are of about this size. Lipschitz gaps are logarithmic, so that neither net's
# scale of activations matters. KD is the mean over all anchors, most of them background: with the prior that a head
# begins with, 0.01 for each class, and a teacher that says 0.001, it is 1.3. Higher temperatures would compare little
# but these small probabilities.
fpn_lipschitz_term = dict(
    loss=dict(type='lckd_mm.LipschitzLoss', gap='log'),
    on=['stage2', 'stage3', 'stage4'],
    connector='loss_ofd',
    weight=0.1,
)
fpn_kd_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=1.0), on='logits', weight=10.0)
fpn_ofd_term = dict(
    loss=dict(type='lckd_mm.OFDLoss'),
    on=['stage2', 'stage3', 'stage4'],
    connector=dict(type='lckd_mm.ConvBN'),
    teacher_connector=dict(type='lckd_mm.MarginReLU'),
    weight=1e-5,
)
