"""How the backbones of this package begin."""

#: He-normal convolutions by fan-out, BatchNorm at 1 and 0 (an ``init_cfg``).
HE_NORMAL = [
    dict(type='Kaiming', layer='Conv2d', mode='fan_out', nonlinearity='relu'),
    dict(type='Constant', layer='BatchNorm2d', val=1, bias=0),
]

#: More layers than any net has: a slip of the keyboard, which would be built for ever.
DEEPEST = 10_000
