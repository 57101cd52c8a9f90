"""What this package's backbones share: initialisation, depth, groups of blocks."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

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


def three_groups(block: Callable[..., nn.Module], widths: Sequence[int], blocks: int, *args) -> list[nn.Sequential]:
    """Groups of ``widths[1:]`` channels; the first block of each widens, that of the later two also halves the map."""
    groups = []
    for i, (before, width) in enumerate(pairwise(widths)):
        first = block(before, width, 2 if i else 1, *args)
        groups.append(nn.Sequential(first, *(block(width, width, 1, *args) for _ in range(blocks - 1))))
    return groups
