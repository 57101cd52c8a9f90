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
# Instances: no weight is published for these heads, so that each of both terms is a quarter of the loss at the start.
# PKD takes the levels from which the masks are made, and of YOLACT the first four, as of RetinaNet.
_quarter_kd = dict(loss=dict(type='lckd_mm.KDLoss', tau=1.0), weight='start:0.25')
_quarter_pkd = dict(loss=dict(type='lckd_mm.PKDLoss'), weight='start:0.25')
solov2_terms = dict(
    loss_kd=dict(on='logits', **_quarter_kd),
    loss_pkd=dict(on=['p2', 'p3', 'p4', 'p5'], **_quarter_pkd),
)
rtmdet_ins_terms = dict(
    loss_kd=dict(on=['logits1', 'logits2', 'logits3'], **_quarter_kd),
    loss_pkd=dict(on=['p3', 'p4', 'p5'], connector=dict(type='lckd_mm.ConvBN'), **_quarter_pkd),
)
yolact_terms = dict(
    loss_kd=dict(on='logits', **_quarter_kd),
    loss_pkd=dict(on=['p3', 'p4', 'p5', 'p6'], **_quarter_pkd),
)
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
