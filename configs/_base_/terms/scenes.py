# Of the regions that the student sampled: class scores, boxes and masks. CrossKD's temperature of 3, with weights
# of 0.5 for all three, lowered Mask R-CNN (docs/data/scenes-families-tries-seed100.json). RegionBoxLoss is the mean
# over objects, a quarter of the regions: 0.25 makes it as large as the student's own. Queries have CrossKD's
# weights.
regions_terms = dict(
    loss_kd=dict(loss=dict(type='lckd_mm.KDLoss', tau=1.0), on='scores', regions=True, weight='start:0.5'),
    loss_boxes=dict(
        loss=dict(type='lckd_mm.RegionBoxLoss'), on='offsets', given=dict(scores='scores'), regions=True, weight=0.25
    ),
)
masks_term = dict(loss=dict(type='lckd_mm.RegionMaskLoss'), on='masks', regions=True, weight=1.0)
queries_term = dict(loss=dict(type='lckd_mm.QueryLoss'), on='memory', queries=True, weight=1.0)
