# Terms of segmentors that stand in neither segmentation.py nor cwd.py. Weights and temperatures are those of the
# authors' code: DIST's of Cityscapes, where the authors add 0.4 of it for the auxiliary heads; MGD's of PSPNet on
# Cityscapes, whose last stage it compares (2048 channels, 64 x 64 positions), with CWD of the class scores beside it;
# for standardised scores those of CIFAR-100.
dist_term = dict(loss=dict(type='lckd_mm.DISTLoss'), on='logits', weight=1.0)
mgd_term = dict(
    loss=dict(type='lckd_mm.MGDLoss'),
    on='last',
    connector=dict(type='lckd_mm.MaskedGenerator', ratio=0.75),
    weight=2e-5,
)
mgd_cwd_term = dict(loss=dict(type='lckd_mm.CWDLoss', tau=4.0), on='logits', weight=3.0)
kd_standardised_term = dict(loss=dict(type='lckd_mm.KDLoss', tau=2.0, standardise=True), on='logits', weight=9.0)
