# The cosine of the student's deepest map, mapped to the teacher's width, and of the teacher's tokens at each position.
foundation_term = dict(
    loss=dict(type='lckd_mm.CosineLoss'),
    student='deepest',
    teacher='tokens',
    connector=[dict(type='lckd_mm.ConvBN'), dict(type='lckd_mm.MatchSize')],
    weight=5.0,
)
