# Of the regions that the student sampled: class scores with CrossKD's temperature and weight for Faster R-CNN, boxes
# and masks. Of the teacher's queries, with CrossKD's weights for Deformable DETR.
regions_terms = dict(
    loss_kd=dict(loss=dict(type='lckd_mm.KDLoss', tau=3.0), on='scores', regions=True, weight=0.5),
    loss_boxes=dict(
        loss=dict(type='lckd_mm.RegionBoxLoss'), on='offsets', given=dict(scores='scores'), regions=True, weight=0.5
    ),
)
masks_term = dict(loss=dict(type='lckd_mm.RegionMaskLoss'), on='masks', regions=True, weight=0.5)
queries_term = dict(loss=dict(type='lckd_mm.QueryLoss'), on='memory', queries=True, weight=1.0)
