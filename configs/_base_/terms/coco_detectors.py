# Terms of detectors on COCO: those of VOC, PKD, FGD, and MGD of two-stage detectors, with the authors' weight. PKD's
# weights are mmrazor's of RetinaNet (10) and of Faster R-CNN (6); GFL, FCOS and RTMDet take RetinaNet's, untuned. FGD's
# are the authors' of RetinaNet on five levels, and of two-stage detectors on four.
_base_ = './fpn_detectors.py'

fpn_pkd_term = dict(loss=dict(type='lckd_mm.PKDLoss'), on=['p3', 'p4', 'p5', 'p6'], weight=10.0)
two_stage_pkd_term = dict(loss=dict(type='lckd_mm.PKDLoss'), on=['p2', 'p3', 'p4', 'p5'], weight=6.0)
fpn_fgd_term = dict(
    loss=dict(type='lckd_mm.FGDLoss', alpha=1e-3, beta=5e-4, gamma=5e-4, lam=5e-6, temperature=0.5),
    on=['p3', 'p4', 'p5', 'p6', 'p7'],
    weight=1.0,
)
two_stage_fgd_term = dict(
    loss=dict(type='lckd_mm.FGDLoss', alpha=5e-5, beta=2.5e-5, gamma=5e-5, lam=5e-7, temperature=0.5),
    on=['p2', 'p3', 'p4', 'p5'],
    weight=1.0,
)
two_stage_mgd_term = dict(
    loss=dict(type='lckd_mm.MGDLoss'),
    on=['p2', 'p3', 'p4', 'p5'],
    connector=dict(type='lckd_mm.MaskedGenerator', ratio=0.45),
    weight=5e-7,
)
# Of the regions that the student sampled, with CrossKD's temperature and weight for Faster R-CNN.
two_stage_kd_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=3.0), on='scores', regions=True, weight=0.5)
# CrossKD's weights for Deformable DETR.
queries_term = dict(loss=dict(type='lckd_mm.QueryLoss'), on='memory', queries=True, weight=1.0)
# RTMDet's pyramid has three levels, whose widths differ between its sizes.
rtmdet_kd_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=1.0), on=['logits1', 'logits2', 'logits3'], weight=10.0)
rtmdet_pkd_term = dict(
    loss=dict(type='lckd_mm.PKDLoss'),
    on=['p3', 'p4', 'p5'],
    connector=dict(type='lckd_mm.ConvBN'),
    weight=10.0,
)
# mmyolo's recipe of RTMDet: CWD of standardised maps, each level with weight 1; CWDLoss takes their mean.
rtmdet_cwd_term = dict(
    loss=dict(type='lckd_mm.CWDLoss', tau=1.0),
    on=['conv3', 'conv4', 'conv5'],
    connector=dict(type='lckd_mm.ConvBN', affine=False),
    teacher_connector=dict(type='lckd_mm.Standardise'),
    weight=3.0,
)
