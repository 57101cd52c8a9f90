# CWD of the class scores, and of the map before them. For the scores, temperature and weight are those of the authors'
# and mmrazor's configs of PSPNet on Cityscapes; their weight on ADE20K is 10. For the map they are those of a run that
# the authors' code stores, in which it is the only term.
cwd_term = dict(loss=dict(type='lckd_mm.CWDLoss', tau=1.0), on='logits', weight=5.0)
cwd_feature_term = dict(
    loss=dict(type='lckd_mm.CWDLoss', tau=4.0),
    on='feature',
    connector=dict(type='lckd_mm.ConvBN'),
    weight=35.0,
)
