"""The leading singular triples of all transmitting matrices of a net at once, in a few large products.

For accelerators, where launching kernels takes longer than running them; a Lanczos iteration launches twenty per step.
"""

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from .krylov import generic_start

# 2^9 power steps, rescaled every third squaring, before a power can leave the dtype's range.
_SQUARINGS = 9
_SCALE_EVERY = 3
# Half the square of the largest relative residual accepted; ten times what rounding alone produces.
_TOLERANCE = 3e-6
# Added so that the check fails for squares that lose digits near the lower end of the dtype's range.
_TINY = 1e-30

Size = tuple[int, int]
Triple = tuple[Tensor, ...]


def common_size(a: Tensor, b: Tensor) -> Size:
    """The common size of two maps: the smaller height and the smaller width."""
    return min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])


def triples_by_squaring(pairs: list[tuple[Tensor, Tensor]], keep: bool) -> list[Triple | None]:
    r"""Largest singular value of each pair and, with ``keep``, the vectors for the gradient; None if a check fails.

    The matrix on the smallest of the sides C1, C2 and HW is squared nine times: :math:`M M^\top`, :math:`M^\top M`, or
    the product of :math:`F_1^\top F_1` and :math:`F_2^\top F_2`; all three have the same nonzero eigenvalues. Each row
    of its 512th power is close to the leading left eigenvector. Matrices of equal size are squared together, across
    pairs. The value is the length of :math:`M^\top u`, with an error of second order in the error of u.

    The check: :math:`\lVert M M^\top u \rVert` equals :math:`\sigma^2` for a singular vector and is larger for any
    other. A pair is None if any sample fails (close singular values; zero or non-finite entries, or entries near the
    ends of the dtype's range). This is the only synchronisation with the accelerator.

    Args:
        pairs: float32 maps ``(B, C1, H1, W1)``, ``(B, C2, H2, W2)``, all with the same batch size.
    Returns:
        For each pair: value ``(B,)`` and, with ``keep``, u ``(B, C1)``, v ``(B, C2)`` and, divided by HW, F1^T u and
        F2^T v at the common positions.
    """
    pairs = [[pooled(x, common_size(*pair)) for x in pair] for pair in pairs]
    groups: dict[int, list[int]] = defaultdict(list)
    for i, (a, b) in enumerate(pairs):
        groups[min(a.shape[1], b.shape[1], a.shape[2])].append(i)
    batch = len(pairs[0][0])
    leading: dict[int, Tensor] = {}
    for side, members in groups.items():
        power = pairs[0][0].new_empty(len(members) * batch, side, side)
        for k, i in enumerate(members):
            _smallest_product(*pairs[i], out=power[k * batch : (k + 1) * batch])
        for k in range(_SQUARINGS):
            if k % _SCALE_EVERY == 0:
                power = power.div_(torch.linalg.vector_norm(power, dim=(1, 2), keepdim=True))
            power = torch.bmm(power, power)
        rows = torch.bmm(generic_start(side, power).expand(len(power), 1, -1), power)
        rows = rows.div_(torch.linalg.vector_norm(rows, dim=-1, keepdim=True))
        leading.update(zip(members, rows.split(batch)))
    triples, lengths = [], []
    for i, (a, b) in enumerate(pairs):
        triple, length = _triple(leading[i], a, b, keep)
        triples.append(triple)
        lengths.append(length)
    sigmas = torch.stack([sigma for sigma, *_ in triples])
    ratios = ((torch.stack(lengths) + _TINY) / sigmas / sigmas).amax((1, 2, 3)).tolist()
    return [
        ((sigma / a.shape[2]).flatten(), *vectors) if ratio <= 1 + _TOLERANCE else None
        for (sigma, *vectors), (a, _), ratio in zip(triples, pairs, ratios)
    ]


def cost_of_squaring(front: Tensor, back: Tensor) -> tuple[int, int]:
    """Multiplications, and bytes in addition to the maps, of :func:`triples_by_squaring` per sample of a pair."""
    size = common_size(front, back)
    area, channels = size[0] * size[1], (front.shape[1], back.shape[1])
    side = min(*channels, area)
    pooled = sum(x.shape[1] * area for x in (front, back) if x.shape[2:] != size)
    if side == area:
        return area**2 * sum(channels) + (_SQUARINGS + 1) * area**3, 4 * (pooled + 3 * area**2)
    matrix = channels[0] * channels[1]
    return matrix * (area + side) + _SQUARINGS * side**3, 4 * (pooled + matrix + 2 * side**2)


def pooled(x: Tensor, size: Size) -> Tensor:
    """A map, pooled to this size, with its positions in one dimension."""
    if x.shape[2:] == size:
        return x.flatten(2)
    height, width = x.shape[2:]
    if height % size[0] == width % size[1] == 0:
        return F.avg_pool2d(x, (height // size[0], width // size[1])).flatten(2)
    return F.adaptive_avg_pool2d(x, size).flatten(2)


def _smallest_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    near, far = _ordered(a, b)
    if near.shape[2] <= near.shape[1]:
        torch.bmm(torch.bmm(near.mT, near), torch.bmm(far.mT, far), out=out)
        return
    m = torch.bmm(near, far.mT)
    torch.bmm(m, m.mT, out=out)


def _ordered(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The two maps, the one with fewer channels (near) first."""
    return (b, a) if b.shape[1] < a.shape[1] else (a, b)


def _triple(row: Tensor, a: Tensor, b: Tensor, keep: bool) -> tuple[Triple, Tensor]:
    """The triple, with its value as ``(B, 1, 1)`` times HW, and the length of M M^T u or M^T M v."""
    area = a.shape[2]
    near, far = _ordered(a, b)
    if area <= near.shape[1]:
        # Here the row is F_far^T v, over positions.
        row = torch.bmm(row, near.mT)
        row = row.div_(torch.linalg.vector_norm(row, dim=-1, keepdim=True))
    near_positions = torch.bmm(row, near)
    image = torch.bmm(near_positions, far.mT)
    sigma = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
    image_positions = torch.bmm(image, far)
    length = torch.linalg.vector_norm(torch.bmm(image_positions, near.mT), dim=-1, keepdim=True)
    if not keep:
        return (sigma,), length
    inverse = 1 / sigma
    vectors = [(row, image * inverse), (near_positions / area, image_positions * (inverse / area))]
    return (sigma, *(x[:, 0] for pair in vectors for x in (pair if near is a else reversed(pair)))), length
