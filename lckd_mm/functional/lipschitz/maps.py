"""Conversion of feature maps and tokens to the input of transmitting matrices, and their mean lengths."""

import math
from collections.abc import Sequence

from torch import Tensor

from ..shapes import check_kind


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
