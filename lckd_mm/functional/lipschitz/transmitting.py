"""The transmitting matrix of two feature maps and its largest singular value, with its exact gradient.

Source: Shang, Duan, Zong, Nie, Yan, "Lipschitz Continuity Guided Knowledge Distillation", ICCV 2021 (LONDON).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .krylov import generic_start, leading_eigenvector, tolerance
from .precision import full_precision, needed_scale, refuse_second_derivative, scaled, unscaled, wide_type
from .squaring import Size, common_size, cost_of_squaring, triples_by_squaring

# Bytes of both maps per chunk: on a CPU this much stays in the cache between products.
_CHUNK = {'cpu': 24 << 20}
_CHUNK_ELSEWHERE = 256 << 20
# Maps of at most this many bytes per sample after pooling are pooled once before the iteration; for larger ones the
# vectors are pooled in every step.
_POOLED_SAMPLE = 512 << 10
# Bytes of the matrices formed at a time, and of the pooled maps they are formed from.
_MATRIX = 2 << 20
_FORMING = 1536 << 10

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

    A Lanczos iteration on :math:`M M^\top` stops when its residual shows that the singular vectors have converged. For
    large maps it forms neither the matrix nor a pooled copy: :math:`M` is only multiplied with vectors,
    :math:`M^\top u = F_2 P_2^\top P_1 F_1^\top u / HW`, where the poolings :math:`P_i` act on vectors of positions, or
    on a few channels at a time. On a CPU, in float32 and with at least one sample per two threads, the iteration is
    compiled (native.py): it multiplies two vectors at a time, from two starts, and stops each sample separately.
    Otherwise it uses torch's operations on whole batches; with few channels or positions, it forms M or
    :math:`F_2^\top F_2` for some samples at a time. On accelerators, all float32 pairs that are not too large are
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
    Error: the residual :math:`\lVert M M^\top u - \sigma^2 u \rVert` is at most 1e-3 :math:`\sigma^2` (in
        float64 1e-9; by squaring 2.5e-3). So, with :math:`r = \sigma_2 / \sigma_1`, the gradient's relative error is at
        most about 1e-3 / (1 - r^2), and the value's about the square of that; apart from rounding, the value is never
        above the true one. Measured on real features (docs/benchmarks.md), 99th percentile: 9e-4 and 7e-7. Two cases
        are worse. If 64 products are not enough, as for a cluster of nearly equal singular values, the gradient is that
        of some vector in the cluster; the value stays accurate. If the start, a fixed pseudo-random vector, is nearly
        orthogonal to the first singular vector, the second is found instead, with an error of 1 - r. This happened with
        torch's operations in 3 of 17,000 samples of small Gaussian maps; with the compiled iteration, when started from
        two such vectors, in 1 of 176,000, and from random starts on trained wide residual nets in none of 51,200.
    Raises:
        ValueError: a map that is not 4-D or is complex, or batch sizes that differ.
            RuntimeError: under ``create_graph=True``, because the rank-one formula has no second derivative.
    Source: LONDON, section 3. Deviation: the authors form :math:`M` and :math:`M M^\top` and run 5 or 10 power steps,
        unrolled through autograd; on trained wide residual nets that is off by 16 % and 7 % (99th percentile).
    """
    maps = tuple(maps)
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
                sigma, *vectors = triple or _norms_of_pair(*pair, dtype, keep)
                sigmas.append(sigma)
                saved += vectors
        ctx.save_for_backward(*saved)
        ctx.kinds = [(x.shape, x.dtype, _memory_format(x)) for x in maps]
        ctx.sizes = [common_size(*pair) for pair in pairwise(maps)]
        return torch.stack(sigmas)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
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
                    rows.append(pooling.adjoint(vectors[k][row][:, None])[:, 0])
            grads.append(_low_rank(columns, rows, shape, dtype, memory_format))
        return tuple(grads)


def _at_once(maps: Sequence[Tensor], dtype: torch.dtype, keep: bool) -> list[tuple[Tensor, ...] | None]:
    """:func:`_norms_of_pair` for all pairs, by a few large products; None for pairs where that is slower or fails."""
    found: list[tuple[Tensor, ...] | None] = [None] * (len(maps) - 1)
    batch = len(maps[0])
    limit = 0 if dtype != torch.float32 else _SQUARED.get(maps[0].device.type, _SQUARED_ELSEWHERE)
    costs = [cost_of_squaring(*pair) for pair in pairwise(maps)]
    chosen = [i for i, (products, _) in enumerate(costs) if 0 < batch * products <= limit]
    if not chosen:
        return found
    samples = max(1, _CHUNK_ELSEWHERE // sum(costs[i][1] for i in chosen))
    chunks = []
    for i in range(0, batch, samples):
        part = [x[i : i + samples].to(dtype) for x in maps]
        chunks.append(triples_by_squaring([(part[k], part[k + 1]) for k in chosen], keep))
    for k, parts in zip(chosen, zip(*chunks)):
        if None not in parts:
            found[k] = parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts))
    return found


def _norms_of_pair(front: Tensor, back: Tensor, dtype: torch.dtype, keep: bool) -> tuple[Tensor, ...]:
    """``(B,)`` singular values and, with ``keep``, the vectors for the gradient.

    These are u ``(B, C1)``, v ``(B, C2)`` and, divided by HW, F1^T u and F2^T v at the common positions, ``(B, HW)``.
    """
    size = common_size(front, back)
    if not native.takes(front, dtype):
        return _iterated(front, back, size, dtype, keep)
    samples = len(front)
    if any(x.dtype != dtype or not x.is_contiguous() for x in (front, back)):
        width = torch.finfo(dtype).bits // 8 * sum(x[0].numel() for x in (front, back))
        samples = max(torch.get_num_threads(), _CHUNK['cpu'] // width)
    parts = []
    for pair in zip(front.split(samples), back.split(samples)):
        part, doubt = native.leading_triples(*(x.to(dtype).contiguous() for x in pair), size, keep)
        if doubt.any():
            for column, rest in zip(part, _iterated(*(x[doubt] for x in pair), size, dtype, keep)):
                column[doubt] = rest
        parts.append(part)
    return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts))


def _iterated(front: Tensor, back: Tensor, size: Size, dtype: torch.dtype, keep: bool) -> tuple[Tensor, ...]:
    """:func:`_norms_of_pair` by torch's operations, some samples at a time, for inputs that native.py cannot handle."""
    plan = _plan((front, back), size, dtype)
    near, far = plan.order
    parts = []
    for i in range(0, max(1, len(front)), plan.samples):
        maps = [x[i : i + plan.samples] for x in (front, back)]
        part = _triple_of_matrix(maps[near], maps[far], size, dtype, keep) if plan.form == 'matrix' else None
        if part is None:
            operators = [_Operator(maps[k].to(dtype), size, plan.pools[k]) for k in plan.order]
            part = _triple_of_gram(*operators, keep) if plan.form == 'gram' else None
            part = part or _leading_triple(*operators, size[0] * size[1], keep)
        parts.append(part)
    sigma, *vectors = parts[0] if len(parts) == 1 else (torch.cat(column) for column in zip(*parts))
    return (sigma, *(vectors[2 * i + k] for i in range(2) for k in plan.order)) if keep else (sigma,)


def _leading_triple(near: '_Operator', far: '_Operator', area: int, keep: bool) -> tuple[Tensor, ...]:
    """:func:`_norms_of_pair` for one chunk, with the near side's vectors first."""
    product = _Product(near, far, keep)
    # The near map times a pseudo-random vector.
    start = product.begin(generic_start(area, near.matrix).expand(near.batch, 1, -1))
    square, u, *rest = leading_eigenvector(product, start, tolerance(start.dtype))
    near_scale, far_scale = product.scales
    sigma = torch.linalg.vector_norm(rest[0], dim=-1, keepdim=True) if keep else square.clamp(min=0).sqrt()
    value = (unscaled(unscaled(sigma, near_scale), far_scale) / area).flatten()
    if not keep:
        return (value,)
    image, *positions = rest
    inverse = 1 / torch.where(sigma == 0, 1, sigma)
    near_positions = unscaled(positions[0], near_scale) / area
    far_positions = unscaled(positions[1] * inverse, far_scale) / area
    return value, *(x[:, 0] for x in (u, image * inverse, near_positions, far_positions))


def _triple_of_matrix(
    near: Tensor, far: Tensor, size: Size, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, ...] | None:
    """:func:`_leading_triple` on the formed matrix; None if its entries are too large or small without scaling."""
    area = size[0] * size[1]
    poolings = [_Pooling(tuple(x.shape[2:]), size, near.new_empty(0, dtype=dtype)) for x in (near, far)]
    matrix = near.new_empty(len(near), near.shape[1], far.shape[1], dtype=dtype)
    # Few samples at a time, so that the pooled maps stay in the cache and take little memory.
    samples = max(1, _FORMING // ((near.shape[1] + far.shape[1]) * area * matrix.element_size()))
    for i in range(0, len(near), samples):
        a, b = (pooling(x[i : i + samples].to(dtype).flatten(2)) for pooling, x in zip(poolings, (near, far)))
        torch.bmm(a, b.mT, out=matrix[i : i + samples])
    if not _within_range(matrix):
        return None

    def apply(u: Tensor) -> tuple[Tensor, Tensor]:
        image = torch.bmm(u, matrix)
        return torch.bmm(image, matrix.mT), image

    start = torch.bmm(generic_start(far.shape[1], matrix).expand(len(near), 1, -1), matrix.mT)
    _, u, image = leading_eigenvector(apply, start, tolerance(dtype))
    sigma = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
    value = (sigma / area).flatten()
    if not keep:
        return (value,)
    v = image / torch.where(sigma == 0, 1, sigma)
    positions = (
        pooling(torch.bmm(w, x.to(dtype).flatten(2))) / area for w, pooling, x in zip((u, v), poolings, (near, far))
    )
    return value, *(x[:, 0] for x in (u, v, *positions))


def _triple_of_gram(near: '_Operator', far: '_Operator', keep: bool) -> tuple[Tensor, ...] | None:
    """:func:`_leading_triple` on the far side's Gram matrix of positions; None as in :func:`_triple_of_matrix`."""
    area = far.matrix.shape[-1]
    gram = far.gram()
    start = near.to_channels(generic_start(area, gram).expand(near.batch, 1, -1))
    if needed_scale(start) is not None or not _within_range(gram):
        return None

    def apply(u: Tensor) -> tuple[Tensor]:
        return (near.to_channels(torch.bmm(near.to_positions(u), gram)),)

    _, u = leading_eigenvector(apply, start, tolerance(gram.dtype))
    # Use the map itself: the value's error is then of second order in the rounding errors of the Gram matrix.
    near_positions = near.to_positions(u)
    image = far.to_channels(near_positions)
    sigma = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
    value = (sigma / area).flatten()
    if not keep:
        return (value,)
    v = image / torch.where(sigma == 0, 1, sigma)
    return value, *(x[:, 0] for x in (u, v, near_positions / area, far.to_positions(v) / area))


def _within_range(matrices: Tensor) -> bool:
    """Whether four products with these matrices stay within float32's range."""
    low, high = torch.linalg.vector_norm(matrices.flatten(1), dim=-1).aminmax()
    return low.item() >= 2.0**-40 and high.item() <= 2.0**40


@dataclass(frozen=True)
class _Plan:
    """How to process a pair: samples per chunk, the matrix to form, the maps to pool first, and the near side.

    Pooling a map first avoids pooling vectors in every step. The iteration starts from the near side, the map that
    costs less to read or, with the matrix formed, has fewer channels.
    """

    samples: int
    form: str | None
    pools: tuple[bool, ...]
    order: tuple[int, int]


def _plan(maps: Sequence[Tensor], size: Size, dtype: torch.dtype) -> _Plan:
    limit = _CHUNK.get(maps[0].device.type, _CHUNK_ELSEWHERE)
    width, area, batch = torch.finfo(dtype).bits // 8, size[0] * size[1], max(1, len(maps[0]))
    pools, touched = [], []
    for x in maps:
        full, pooled = x.shape[1] * x.shape[2] * x.shape[3] * width, x.shape[1] * area * width
        divides = x.shape[2] % size[0] == x.shape[3] % size[1] == 0
        pools.append(0 < pooled < full and divides and pooled <= _POOLED_SAMPLE)
        touched.append(pooled if pools[-1] else full)
    samples = max(1, min(batch, limit // max(1, sum(touched))))
    order = (0, 1) if touched[0] <= touched[1] else (1, 0)
    form = None
    on_cpu = maps[0].device.type == 'cpu'
    if on_cpu and len(maps[0]) and all(pool or x.shape[2:] == size for pool, x in zip(pools, maps)):
        # Twelve reads of the iterated data, plus the cost of forming it: eight operations cost as much as reading a
        # byte.
        matrix, gram = maps[0].shape[1] * maps[1].shape[1] * width, area**2 * width
        near, far = (touched[k] for k in order)
        costs = {
            None: 12 * (near + far),
            'matrix': matrix * (area / 8 + 12) if matrix <= _MATRIX else math.inf,
            'gram': far * area / 8 + 12 * near + 6 * gram if gram <= _MATRIX else math.inf,
        }
        form = min(costs, key=costs.get)
    if form == 'matrix':
        samples = max(1, min(batch, _MATRIX // matrix))
        order = (0, 1) if maps[0].shape[1] <= maps[1].shape[1] else (1, 0)
    elif form == 'gram':
        samples = max(1, min(samples, 2 * _MATRIX // (near + gram)))
    # Chunks of equal size.
    samples = math.ceil(batch / math.ceil(batch / samples))
    return _Plan(samples, form, tuple(pools), order)


class _Product:
    """:math:`M M^\top` of a chunk, times vectors ``(b, 1, C)`` of the near map's channels, and intermediate results.

    Both maps are scaled to the order of one by powers of two, so that no product overflows or underflows. The scale of
    each map is read off its first product.
    """

    def __init__(self, near: '_Operator', far: '_Operator', keep: bool):
        self.near, self.far, self.keep = near, far, keep
        self.scales: list[Tensor | None] = []

    def begin(self, positions: Tensor) -> Tensor:
        """The start: the near map times a vector of positions."""
        start = self.near.to_channels(positions)
        self.scales = [needed_scale(start)]
        return scaled(start, self.scales[0])

    def __call__(self, u: Tensor) -> tuple[Tensor, ...]:
        near_positions = scaled(self.near.to_positions(u), self.scales[0])
        image = self.far.to_channels(near_positions)
        if len(self.scales) == 1:
            self.scales.append(needed_scale(image))
        image = scaled(image, self.scales[1])
        far_positions = scaled(self.far.to_positions(image), self.scales[1])
        product = scaled(self.near.to_channels(far_positions), self.scales[0])
        return (product, image, near_positions, far_positions) if self.keep else (product,)


class _Operator:
    """A chunk of maps as a linear operator between channels ``(b, 1, C)`` and common positions ``(b, 1, hw)``."""

    def __init__(self, maps: Tensor, size: Size, pool: bool):
        self.batch = len(maps)
        self.pooling = _Pooling(tuple(maps.shape[2:]), size, maps)
        self.matrix = maps.flatten(2)
        if pool:
            self.matrix = self.pooling(self.matrix)
            self.pooling = _Pooling(size, size, maps)
        # One matrix-vector product runs on one core: split a single sample by channels, one part per core.
        cores = torch.get_num_threads() if maps.device.type == 'cpu' and len(maps) == 1 else 1
        self.parts = next(p for p in range(cores, 0, -1) if maps.shape[1] % p == 0)
        if self.parts > 1:
            self.matrix = self.matrix.unflatten(1, (self.parts, -1))[0]

    def to_positions(self, u: Tensor) -> Tensor:
        """The map's transpose times u, pooled."""
        if self.parts == 1:
            return self.pooling(torch.bmm(u, self.matrix))
        return self.pooling(torch.bmm(u.view(self.parts, 1, -1), self.matrix).sum(0, keepdim=True))

    def to_channels(self, w: Tensor) -> Tensor:
        """The map times w, after w is spread to the map's own positions (the adjoint of pooling)."""
        w = self.pooling.adjoint(w)
        if self.parts == 1:
            return torch.bmm(w, self.matrix.mT)
        return torch.bmm(w.expand(self.parts, 1, -1), self.matrix.mT).view(1, 1, -1)

    def gram(self) -> Tensor:
        """The map's transpose times the map, ``(b, HW, HW)``; the map must have the common size."""
        products = torch.bmm(self.matrix.mT, self.matrix)
        return products if self.parts == 1 else products.sum(0, keepdim=True)


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
    if dtype == columns[0].dtype and native.takes(out, dtype) and out.is_contiguous():
        native.low_rank(columns, rows, flat)
        return out
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
