"""The transmitting matrix of two feature maps and its largest singular value, with its exact gradient.

Source: Shang, Duan, Zong, Nie, Yan, "Lipschitz Continuity Guided Knowledge Distillation", ICCV 2021 (LONDON).
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .krylov import generic_start, leading_eigenvector, tolerance
from .precision import full_precision, inverse_scale, wide_type
from .squaring import Size, common_size, cost_of_squaring, triples_by_squaring

# Bytes of the matrices that are iterated on at a time, and of both maps where no matrix is formed.
_CHUNK = {'cpu': (2 << 20, 64 << 20)}
_CHUNK_ELSEWHERE = 256 << 20, 256 << 20
# M M^T is formed if C1 C2 / (C1 + C2) is below this: that takes less time than some twelve readings of both maps.
_FORMED = 128

# Up to this many multiplications for all samples of a pair, a few large products are faster than many small ones.
_SQUARED = {'cpu': 0}
_SQUARED_ELSEWHERE = 15 * 10**9


def transmitting_matrix(front: Tensor, back: Tensor) -> Tensor:
    r"""Transmitting matrix of two feature maps of one net, per sample.

    .. math:: M = F_1 F_2^\top / (H W)

    with the maps flattened to :math:`C \times HW`; the larger map is first pooled (adaptive average) to the size of the
    smaller one. M is the FSP matrix of Yim et al. (2017); LONDON's :math:`TM` is :math:`M^\top M`.

    Args:
        front: ``(B, C1, H1, W1)``, the earlier map.
        back: ``(B, C2, H2, W2)``, the later map.
    Returns:
        ``(B, C1, C2)``, in units of front times back, at least float32.
    Raises:
        ValueError: a map that is not 4-D, or batch sizes that differ.
    Source: LONDON, section 3, and the authors' code. Deviation: none.
    """
    _check_maps([front, back])
    size = common_size(front, back)
    dtype = wide_type(front, back)
    first, second = (
        (x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)).flatten(2)
        for x in (front.to(dtype), back.to(dtype))
    )
    with full_precision(first):
        return first @ second.mT / first.shape[2]


def transmitting_norm(front: Tensor, back: Tensor) -> Tensor:
    r"""Largest singular value of :func:`transmitting_matrix`, per sample, with its exact gradient.

    Args:
        front: ``(B, C1, H1, W1)``. back: ``(B, C2, H2, W2)``; any floating-point dtype and memory format.
    Returns:
        ``(B,)``, at least float32.
    Method, Error and Raises: see :func:`transmitting_norms`.
    """
    return transmitting_norms([front, back])[0]


def transmitting_norms(maps: Sequence[Tensor]) -> Tensor:
    r"""Largest singular value of the transmitting matrix of each map and the next, per sample.

    A Lanczos iteration on :math:`M M^\top` stops when its residual shows that the singular vectors have converged. With
    few channels on one side :math:`M M^\top` is formed, some samples at a time. Otherwise neither a matrix nor a pooled
    copy of a map is: M is only multiplied with vectors, :math:`M^\top u = F_2 P_2^\top P_1 F_1^\top u / HW`, where the
    poolings :math:`P_i` act on vectors of positions. On accelerators all float32 pairs that are not too large are
    computed together, by repeated squaring of the matrix on the smallest side; pairs that fail the check of that method
    go through the iteration.

    With unit singular vectors :math:`u, v` the gradient has rank one,
    :math:`\partial\sigma/\partial F_1 = u \, (P_1^\top P_2 F_2^\top v)^\top / HW`, likewise for :math:`F_2`, and is
    written directly into the gradient of the unpooled map. Only four vectors per sample and pair, and no map, are saved
    for backward.

    Args:
        maps: n >= 2 maps ``(B, C_i, H_i, W_i)`` of one net in order of depth; any floating-point dtype and memory
            format.
    Returns:
        ``(n - 1, B)``, at least float32; 0 with zero gradient where a map is zero; nan for nan or infinite entries.
    Error: the residual :math:`\lVert M M^\top u - \sigma^2 u \rVert` is at most 1e-4 :math:`\sigma^2` (in
        float64 1e-9; by squaring 2.5e-3). So, with :math:`r = \sigma_2 / \sigma_1`, the gradient's relative error is at
        most about 1e-4 / (1 - r^2), and the value's about the square of that; apart from rounding, the value is never
        above the true one. Measured on real features: docs/benchmarks.md. Two cases are worse. If 64 products are not
        enough, as for a cluster of nearly equal singular values, the gradient is that of some vector in the cluster;
        the value stays accurate. If the start, a fixed pseudo-random vector, is nearly orthogonal to the first singular
        vector, the second is found instead, with an error of 1 - r: in 4 of 96,000 samples of small Gaussian maps.
    Raises:
        ValueError: a map that is not 4-D or is complex, batch sizes that differ, or fewer than two maps.
        RuntimeError: under ``create_graph=True``, because the rank-one formula has no second derivative.
    Source: LONDON, section 3. Deviation: the authors form :math:`M` and :math:`M M^\top` and run 5 or 10 power steps,
        unrolled through autograd; on trained wide residual nets that is off by 16 % and 7 % (99th percentile).
    """
    maps = tuple(maps)
    if len(maps) < 2:
        raise ValueError(f'transmitting_norms: expected two maps or more of one net, got {len(maps)}')
    _check_maps(maps)
    return _TransmittingNorms.apply(torch.is_grad_enabled() and any(x.requires_grad for x in maps), *maps)


class _TransmittingNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keep: bool, *maps: Tensor) -> Tensor:
        dtype = wide_type(*maps)
        sigmas, saved = [], []
        with full_precision(maps[0]):
            known = _at_once(maps, dtype, keep)
            for pair, triple in zip(pairwise(maps), known):
                sigma, *vectors = triple or _by_iteration(*pair, dtype, keep)
                sigmas.append(sigma)
                saved += vectors
        ctx.save_for_backward(*saved)
        ctx.kinds = [(x.shape, x.dtype, _memory_format(x)) for x in maps]
        ctx.sizes = [common_size(*pair) for pair in pairwise(maps)]
        return torch.stack(sigmas)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Gradients are enabled here only with create_graph=True; the singular vectors would be taken as constants.
        if torch.is_grad_enabled():
            raise RuntimeError(
                'transmitting_norm: its gradient cannot be differentiated again (create_graph=True); take this term '
                'out of what is differentiated twice, or use torch.linalg.svdvals of the transmitting_matrix'
            )
        saved = ctx.saved_tensors  # read once: each access unpacks all of them
        vectors = [saved[i : i + 4] for i in range(0, len(saved), 4)]
        grads: list[Tensor | None] = [None]
        for i, (shape, dtype, memory_format) in enumerate(ctx.kinds):
            if not ctx.needs_input_grad[i + 1]:
                grads.append(None)
                continue
            columns, rows = [], []  # vectors over channels and over positions, one of each per pair with this map
            for k, column, row in ((i, 0, 3), (i - 1, 1, 2)):
                if 0 <= k < len(vectors):
                    columns.append(vectors[k][column] * grad[k][:, None])
                    pooling = _Pooling(tuple(shape[2:]), ctx.sizes[k], grad)
                    with full_precision(grad):
                        rows.append(pooling.adjoint(vectors[k][row]))
            grads.append(_low_rank(columns, rows, shape, dtype, memory_format))
        return tuple(grads)


def _at_once(maps: Sequence[Tensor], dtype: torch.dtype, keep: bool) -> list[tuple[Tensor, ...] | None]:
    """:func:`_by_iteration` for all pairs, by a few large products; None for pairs where that is slower or fails."""
    found: list[tuple[Tensor, ...] | None] = [None] * (len(maps) - 1)
    batch = len(maps[0])
    limit = 0 if dtype != torch.float32 else _SQUARED.get(maps[0].device.type, _SQUARED_ELSEWHERE)
    costs = [cost_of_squaring(*pair) for pair in pairwise(maps)]
    chosen = [i for i, (products, _) in enumerate(costs) if 0 < batch * products <= limit]
    if not chosen:
        return found
    samples = max(1, _CHUNK_ELSEWHERE[0] // sum(costs[i][1] for i in chosen))
    chunks = []
    for i in range(0, batch, samples):
        part = [x[i : i + samples].to(dtype) for x in maps]
        chunks.append(triples_by_squaring([(part[k], part[k + 1]) for k in chosen], keep))
    for k, parts in zip(chosen, zip(*chunks)):
        if None not in parts:
            found[k] = parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts))
    return found


def _by_iteration(front: Tensor, back: Tensor, dtype: torch.dtype, keep: bool) -> tuple[Tensor, ...]:
    """``(B,)`` singular values and, with ``keep``, the vectors for the gradient.

    These are u ``(B, C1)``, v ``(B, C2)`` and, divided by HW, F1^T u and F2^T v at the common positions, ``(B, HW)``.
    """
    channels, size = (front.shape[1], back.shape[1]), common_size(front, back)
    form = channels[0] * channels[1] < min(_FORMED, size[0] * size[1]) * sum(channels)
    # Vectors over the channels of the near map are iterated on: of the one with fewer, or of the smaller one.
    floats = [x.shape[1:].numel() for x in (front, back)]
    swap = channels[0] > channels[1] if form else floats[0] > floats[1]
    matrices, maps = (limit * 8 // torch.finfo(dtype).bits for limit in _CHUNK.get(front.device.type, _CHUNK_ELSEWHERE))
    samples = matrices // min(channels) ** 2 if form else maps // sum(floats)
    if any(x.dtype != dtype for x in (front, back)):
        samples = min(samples, maps // sum(floats))
    samples, parts = max(1, samples), []
    for pair in zip(front.split(samples), back.split(samples)):
        near, far = (_Side(x, size, dtype) for x in (reversed(pair) if swap else pair))
        parts.append(_leading_triple(near, far, form, keep))
    sigma, *vectors = (torch.cat(column) for column in zip(*parts))
    return (sigma, *(vectors[i ^ swap] for i in range(len(vectors))))


def _leading_triple(near: '_Side', far: '_Side', form: bool, keep: bool) -> tuple[Tensor, ...]:
    """:func:`_by_iteration` for one chunk, with the near side's vectors first."""

    def forth(u: Tensor) -> tuple[Tensor, Tensor]:
        positions = near.to_positions(u)
        return positions, far.to_channels(positions)

    def back(v: Tensor) -> Tensor:
        return near.to_channels(far.to_positions(v))

    batch, channels = near.flat.shape[:2]
    if form:
        square = _square(near, far)
        start = torch.bmm(generic_start(channels, square).expand(batch, 1, -1), square)
        _, u = leading_eigenvector(lambda u: torch.bmm(u, square), start, tolerance(start.dtype))
    else:
        start = near.to_channels(generic_start(near.area, near.flat).expand(batch, 1, -1))
        _, u = leading_eigenvector(lambda u: back(forth(u)[1]), start, tolerance(start.dtype))
    positions, image = forth(u)
    sigma = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
    value = (sigma / near.area / near.scale / far.scale).flatten()
    if not keep:
        return (value,)
    v = image / torch.where(sigma == 0, 1, sigma)
    positions = (w / side.scale / side.area for side, w in ((near, positions), (far, far.to_positions(v))))
    return value, *(x[:, 0] for x in (u, v, *positions))


def _square(near: '_Side', far: '_Side') -> Tensor:
    """M times its transpose, ``(b, C, C)``, up to a factor; a few samples at a time, so that it takes little memory."""
    channels, area = near.flat.shape[1], near.area
    square = near.flat.new_empty(len(near.flat), channels, channels)
    few = max(1, (1 << 18) // (area * (channels + far.flat.shape[1])))
    for i in range(0, len(square), few):
        a, b = (side.pooling(side.flat[i : i + few]) for side in (near, far))
        m = torch.bmm(a, b.mT)
        m = m * inverse_scale(m, (1, 2))
        torch.bmm(m, m.mT, out=square[i : i + few])
    return square


class _Side:
    """A chunk of maps as a linear operator between channels ``(b, s, C)`` and common positions ``(b, s, HW)``.

    Its products are scaled by a power of two, read off the first of them, so that none overflows or underflows.
    """

    def __init__(self, maps: Tensor, size: Size, dtype: torch.dtype):
        self.flat = maps.to(dtype).flatten(2)
        self.area = size[0] * size[1]
        self.pooling = _Pooling(tuple(maps.shape[2:]), size, self.flat)
        self.scale: Tensor | None = None

    def to_positions(self, u: Tensor) -> Tensor:
        """The map's transpose times u, pooled."""
        return self._scaled(self.pooling(torch.bmm(u, self.flat)))

    def to_channels(self, w: Tensor) -> Tensor:
        """The map times w, after w is spread to the map's own positions (the adjoint of pooling)."""
        return self._scaled(torch.bmm(self.pooling.adjoint(w), self.flat.mT))

    def _scaled(self, product: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = inverse_scale(product, (1, 2))
        return product * self.scale


class _Pooling:
    """Adaptive average pooling of positions, ``(..., HW)`` to ``(..., hw)``, and its adjoint.

    It is a product with a matrix along each axis; if the heights divide, one product does both.
    """

    def __init__(self, source: Size, target: Size, like: Tensor):
        self.source, self.target = source, target
        self.together = source[0] // target[0] if source[0] % target[0] == 0 else 1
        rows, columns = (source[0] // self.together, target[0]), (source[1], target[1])
        self.rows = None if rows[0] == rows[1] else _pooling_matrix(*rows, 1, like.dtype, like.device)
        self.columns = None if source == target else _pooling_matrix(*columns, self.together, like.dtype, like.device)

    def __call__(self, w: Tensor) -> Tensor:
        if self.columns is None:
            return w
        if self.rows is None:
            w = w.unflatten(-1, (self.target[0], self.together * self.source[1]))
        else:
            w = self.rows @ w.unflatten(-1, self.source)
        return (w @ self.columns.mT).flatten(-2)

    def adjoint(self, w: Tensor) -> Tensor:
        if self.columns is None:
            return w
        w = w.unflatten(-1, self.target) @ self.columns
        return (w if self.rows is None else self.rows.mT @ w).flatten(-2)


@lru_cache(maxsize=256)
def _pooling_matrix(n: int, m: int, together: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(m, together * n)``: adaptive average pooling along one axis, with torch's bins, for several rows at once."""
    one = F.adaptive_avg_pool1d(torch.eye(n, dtype=torch.float64, device='cpu')[None], m)[0].T / together
    return one.tile(1, together).to(device, dtype)


def _low_rank(
    columns: list[Tensor], rows: list[Tensor], shape: torch.Size, dtype: torch.dtype, memory_format: torch.memory_format
) -> Tensor:
    """Sum of outer products of ``(B, C)`` and ``(B, HW)`` as a map, written in one pass."""
    out = torch.empty(shape, dtype=dtype, device=columns[0].device, memory_format=memory_format)
    flat = out.flatten(2)
    if dtype == columns[0].dtype:
        torch.mul(columns[0][:, :, None], rows[0][:, None], out=flat)
        for column, row in zip(columns[1:], rows[1:]):
            flat.addcmul_(column[:, :, None], row[:, None])
        return out
    for i in range(len(flat)):
        # Half precision: one sample at a time, so that the float32 sum needs little memory.
        flat[i] = sum(column[i, :, None] * row[i] for column, row in zip(columns, rows))
    return out


def _memory_format(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def _check_maps(maps: Sequence[Tensor]) -> None:
    for x in maps:
        if x.dim() != 4 or len(x) != len(maps[0]):
            raise ValueError(
                'transmitting matrix: expected maps (B, C, H, W) of the same samples, got '
                f'{tuple(maps[0].shape)} and {tuple(x.shape)}'
            )
