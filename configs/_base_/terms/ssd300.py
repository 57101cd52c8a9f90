# Terms of SSD300. Temperatures and weights are ours, untuned; but OFD's weight is the authors' of ImageNet, whose maps
# are of about this size. Lipschitz gaps are logarithmic, so that neither net's scale of activations matters. KD is the
# mean over all anchors, most of them background: a student without a clue, every class as likely, has 6.
ssd_lipschitz_term = dict(
    loss=dict(type='lckd_mm.LipschitzLoss', gap='log'),
    on=['stage1', 'stage2', 'stage3', 'stage4'],
    connector='loss_ofd',
    weight=0.1,
)
ssd_kd_term = dict(
    loss=dict(type='lckd_mm.KDLoss', tau=2.0),
    on=['logits1', 'logits2', 'logits3', 'logits4', 'logits5', 'logits6'],
    weight=1.0,
)
ssd_ofd_term = dict(
    loss=dict(type='lckd_mm.OFDLoss'),
    on=['stage1', 'stage2', 'stage3', 'stage4'],
    connector=dict(type='lckd_mm.ConvBN'),
    teacher_connector=dict(type='lckd_mm.MarginReLU'),
    weight=1e-4,
)
