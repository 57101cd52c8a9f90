# Term of Mask2Former. Its weights of classes (2), masks and dice (5 each) and its points are those of Mask2Former's own
# loss; no sum with the student's loss is tuned.
mask_queries_term = dict(
    loss=dict(type='lckd_mm.MaskQueryLoss'),
    on=['mask', 'memory0', 'memory1', 'memory2'],
    queries=True,
    weight=1.0,
)
