"""What this package's backbones share: initialisation and depth."""

#: He-normal convolutions by fan-out, BatchNorm at 1 and 0 (an ``init_cfg``).
HE_NORMAL = [
    dict(type='Kaiming', layer='Conv2d', mode='fan_out', nonlinearity='relu'),
    dict(type='Constant', layer='BatchNorm2d', val=1, bias=0),
]


def blocks_per_group(who: str, depth: int, layers: int, others: int) -> int:
    """n of a net with ``depth = layers n + others``; ValueError unless it is an integer above 0."""
    blocks, rest = divmod(depth - others, layers)
    if blocks < 1 or rest:
        examples = ', '.join(str(layers * n + others) for n in (1, 2, 3))
        raise ValueError(f'{who}: depth must be {layers} n + {others}, such as {examples}, got {depth!r}')
    return blocks
