"""Layouts of features, shape checks, and means that are 0 instead of nan for an empty batch.

A feature is a map (B, C, H, W), tokens (B, N, C) or a vector (B, C). Taps bring the hosts' tensors into these layouts
(:mod:`lckd_mm.taps.axes`), so that the number of axes tells the layout, and the layout the axis of the channels.
"""

import math
from collections.abc import Sequence

from torch import Tensor

#: Kind of feature to its layout.
LAYOUTS = {'vector': 'a vector (B, C)', 'tokens': 'tokens (B, N, C)', 'map': 'a map (B, C, H, W)'}


#: How tokens become maps.
AS_MAPS = "a teacher gives a vision transformer's tokens as maps with patch=… and prefix=… beside its checkpoint"


def kind_of(x: Tensor) -> str | None:
    """'vector', 'tokens' or 'map'; None for another number of axes."""
    return {2: 'vector', 3: 'tokens', 4: 'map'}.get(x.dim())


def check_kind(who: str, x: Tensor, takes: Sequence[str], advice: str = '') -> None:
    """Raise ValueError unless the feature is of one of these kinds, with no axis of size 0 other than the batch."""
    if kind_of(x) not in takes or not x.shape[1:].numel():
        layouts = ' or '.join(LAYOUTS[kind] for kind in takes)
        raise ValueError(f'{who}: expected {layouts}, got shape {tuple(x.shape)}' + (f'; {advice}' if advice else ''))


def channels_first(x: Tensor) -> Tensor:
    """``(B, C, ...)``: tokens as (B, C, N), all else as it is."""
    return x.mT if x.dim() == 3 else x


def width(shape: Sequence[int]) -> int:
    """The number of channels of a feature of this shape."""
    return shape[-1] if len(shape) == 3 else shape[1]


def check_rank(who: str, x: Tensor, least: int, layout: str) -> None:
    """Raise ValueError for fewer than ``least`` dimensions, or a dimension of size 0 other than the batch."""
    if x.dim() < least or not x.shape[1:].numel():
        raise ValueError(f'{who}: expected {layout}, got shape {tuple(x.shape)}')


def same_shape(who: str, student: Tensor, teacher: Tensor, advice: str = '') -> None:
    """Raise ValueError, with ``advice`` or the connectors that help, if the shapes differ."""
    if student.shape == teacher.shape:
        return
    advice = advice or _connectors(student, teacher)
    raise ValueError(
        f'{who}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape'
        + (f'; {advice}' if advice else '')
    )


def _connectors(student: Tensor, teacher: Tensor) -> str:
    """What makes the features equal in shape; '' if no connector does."""
    kind = kind_of(student)
    if kind != kind_of(teacher):
        more = f'; {AS_MAPS}' if kind_of(teacher) == 'tokens' else ''
        return f'tap features of one kind in both nets: maps, tokens or vectors{more}'
    if kind == 'tokens' and student.shape[1] != teacher.shape[1]:
        return 'tap layers with as many tokens in both nets, or maps, which lckd_mm.MatchSize resizes'
    ways = {}
    if kind is not None and width(student.shape) != width(teacher.shape):
        ways['maps the channels'] = f"dict(type='lckd_mm.{'ConvBN' if kind == 'map' else 'Linear'}')"
    if kind == 'map' and student.shape[2:] != teacher.shape[2:]:
        ways['resizes'] = "dict(type='lckd_mm.MatchSize')"
    connector = ', '.join(ways.values())
    return f'connector={f"[{connector}]" if len(ways) > 1 else connector} {" and ".join(ways)}' if ways else ''


def mean(x: Tensor) -> Tensor:
    """Mean of all entries; 0 with zero gradient for an empty tensor, as on a rank without samples."""
    return x.mean() if x.numel() else x.sum()


def mean_square(who: str, student: Tensor, teacher: Tensor, advice: str = '') -> Tensor:
    """Mean squared difference of two tensors of equal shape; 0 if they are empty."""
    same_shape(who, student, teacher, advice)
    # Not torch's mse_loss, whose backward fails if the nets have different precisions.
    return mean((student - teacher).square())


def mean_length(x: Tensor) -> Tensor:
    """Root mean square over positions of the length of the channel vectors: ``(B,)``, above 0."""
    square = x.square().sum((1, 2, 3)) / x.shape[2:].numel()
    return square.clamp(min=1e-24).sqrt()


def as_maps(features: Sequence[Tensor], aspect: float = 1.0) -> list[Tensor]:
    """Maps unchanged; tokens ``(B, L, C)`` as maps with one row, or with aspect ratio H / W if their numbers differ."""
    counts = {x.shape[1] for x in features if x.dim() == 3}
    maps = []
    for x in features:
        if x.dim() == 4:
            maps.append(x)
            continue
        check_kind('Lipschitz matching', x, ('map', 'tokens'))
        height = max(1, round(math.sqrt(x.shape[1] * aspect)))
        if len(counts) == 1 and all(y.dim() == 3 for y in features):
            grid = 1, x.shape[1]
        elif x.shape[1] % height == 0 and abs(height**2 / x.shape[1] / aspect - 1) < 0.5:
            grid = height, x.shape[1] // height
        else:
            raise ValueError(
                f'LipschitzLoss: {sorted(counts)} tokens at the taps do not all fill a grid of the aspect '
                f"{aspect:.3g}; tap maps, such as the backbone's outputs 'backbone[0]', or stages of as many tokens"
            )
        maps.append(x.transpose(1, 2).unflatten(2, grid))
    return maps
