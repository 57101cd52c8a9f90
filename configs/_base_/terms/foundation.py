# DINOv2 (ViT-S/14), as published for mmpretrain. A patch of 14 pixels of its images is one of 32 of the student's.
dinov2_teacher = dict(
    model='mmpretrain::dinov2/vit-small-p14_dinov2-pre_headless.py',
    checkpoint='https://download.openmmlab.com/mmpretrain/v1.0/dinov2/'
    'vit-small-p14_dinov2-pre_3rdparty_20230426-5641ca5a.pth',
    scale=14 / 32,
    patch=14,
    prefix=1,
)
dinov2_taps = dict(tokens='backbone.ln1')
# The cosine of the student's deepest map, mapped to the teacher's width, and of the teacher's tokens at each position.
foundation_term = dict(
    loss=dict(type='lckd_mm.CosineLoss'),
    student='deepest',
    teacher='tokens',
    connector=[dict(type='lckd_mm.ConvBN'), dict(type='lckd_mm.MatchSize')],
    weight=5.0,
)
