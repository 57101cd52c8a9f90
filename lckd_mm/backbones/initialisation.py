"""Initialisation of this package's backbones."""

#: He-normal convolutions by fan-out, BatchNorm at 1 and 0 (an ``init_cfg``).
HE_NORMAL = [
    dict(type='Kaiming', layer='Conv2d', mode='fan_out', nonlinearity='relu'),
    dict(type='Constant', layer='BatchNorm2d', val=1, bias=0),
]

#: Upper bound on the depth: a larger one is a typo, and building it would take for ever.
DEEPEST = 10_000
