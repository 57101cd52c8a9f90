# Terms of the demo on RetinaNet. Next to all positions are background: the mean of KD over them is small. The weights
# of the methods of dense detectors, untuned, are those of terms/dense_detectors.py.
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
_levels = ['p2', 'p3', 'p4']
_scores = dict(scores='logits')
_aligned = [dict(type='lckd_mm.ConvBN'), dict(type='lckd_mm.MatchStatistics')]
pkd_term = dict(loss=dict(type='lckd_mm.PKDLoss'), on=_levels, connector=dict(type='lckd_mm.ConvBN'), weight=10.0)
mgd_term = dict(
    loss=dict(type='lckd_mm.MGDLoss'),
    on=_levels,
    connector=dict(type='lckd_mm.MaskedGenerator', ratio=0.65),
    weight=2e-5,
)
swl2_term = dict(
    loss=dict(type='lckd_mm.ScoreWeightedLoss'),
    on=_levels,
    given=_scores,
    connector=dict(type='lckd_mm.MLP'),
    weight=6.0,
)
bckd_term = dict(loss=dict(type='lckd_mm.BCKDLoss'), on='logits', weight=1.0)
bckd_boxes_term = dict(loss=dict(type='lckd_mm.BCKDBoxLoss'), on='boxes', given=_scores, weight=4.0)
crosskd_term = dict(
    loss=dict(type='lckd_mm.BCKDLoss'),
    student='cls_tower',
    reuse='cls_tower',
    teacher='logits',
    connector=_aligned,
    weight=1.0,
)
crosskd_boxes_term = dict(
    loss=dict(type='lckd_mm.BCKDBoxLoss', weigh='confidence'),
    student='reg_tower',
    reuse='reg_tower',
    teacher='boxes',
    given=_scores,
    connector=_aligned,
    weight=1.0,
)
