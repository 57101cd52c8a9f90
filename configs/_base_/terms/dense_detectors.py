# Terms of dense detectors with a pyramid of five levels. Weights are those of the methods' authors on COCO, if they
# have one: PKD's paper for RetinaNet, MGD's config of RetinaNet, BCKD's of GFL, CrossKD's of each head, mmdet's of LD,
# and the default of Ultralytics for the score-weighted distance. But where authors divide by the number of positives,
# BCKD and CrossKD here divide by the sum of the teacher's confidences.
_levels = ['p3', 'p4', 'p5', 'p6', 'p7']
_gfl_boxes = ['boxes3', 'boxes4', 'boxes5', 'boxes6', 'boxes7']
_sure = dict(loss=dict(type='lckd_mm.BCKDBoxLoss', weigh='confidence'), given=dict(scores='logits'))
_matched = dict(type='lckd_mm.MatchStatistics')
_reused_boxes = dict(student='reg_tower', reuse='reg_tower', connector=_matched)
pkd_term = dict(loss=dict(type='lckd_mm.PKDLoss'), on=['p3', 'p4', 'p5', 'p6'], weight=10.0)
mgd_term = dict(
    loss=dict(type='lckd_mm.MGDLoss'),
    on=_levels,
    connector=dict(type='lckd_mm.MaskedGenerator', ratio=0.65),
    weight=2e-5,
)
swl2_term = dict(
    loss=dict(type='lckd_mm.ScoreWeightedLoss'),
    on=_levels,
    given=dict(scores='logits'),
    connector=dict(type='lckd_mm.MLP'),
    weight=6.0,
)
bckd_term = dict(loss=dict(type='lckd_mm.BCKDLoss'), on='logits', weight=1.0)
crosskd_term = dict(
    loss=dict(type='lckd_mm.BCKDLoss'),
    student='cls_tower',
    reuse='cls_tower',
    teacher='logits',
    connector=_matched,
    weight=1.0,
)
retinanet_bckd_boxes_term = dict(
    loss=dict(type='lckd_mm.BCKDBoxLoss'), on='boxes', given=dict(scores='logits'), weight=4.0
)
retinanet_crosskd_boxes_term = dict(teacher='boxes', weight=1.0, **_sure, **_reused_boxes)
gfl_ld_term = dict(
    loss=dict(type='lckd_mm.LDLoss', tau=10.0, weigh='assigned'),
    on=_gfl_boxes,
    given=dict(scores='logits'),
    weight=0.25,
)
gfl_bckd_boxes_term = dict(
    loss=dict(type='lckd_mm.BCKDBoxLoss'), on=_gfl_boxes, given=dict(scores='logits'), weight=4.0
)
gfl_crosskd_boxes_term = dict(teacher=_gfl_boxes, weight=2.0, **_sure, **_reused_boxes)
gfl_crosskd_ld_term = dict(
    loss=dict(type='lckd_mm.LDLoss', tau=1.0),
    given=dict(scores='logits'),
    teacher=_gfl_boxes,
    weight=3.0,
    **_reused_boxes,
)
