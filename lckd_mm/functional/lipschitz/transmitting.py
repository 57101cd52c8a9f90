"""The Lipschitz core: the transmitting matrix of two feature maps, its largest singular value, and gaps of it.

Source: Shang, Duan, Zong, Nie, Yan, "Lipschitz Continuity Guided Knowledge Distillation", ICCV 2021 (LONDON).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GAPS = ('absolute', 'relative', 'log')

# 2**8 = 256 power steps on the Gram matrix, that is a factor (sigma_2 / sigma_1) ** 512 on the wrong direction.
_SQUARINGS = 8


def transmitting_matrix(front: Tensor, back: Tensor) -> Tensor:
    r"""Transmitting matrix of two feature maps of one net, per sample.

    .. math:: M = F_1 F_2^\top / (H W)

    with the maps flattened to :math:`C \times HW`, the larger map first pooled (adaptive average) to the size of the
    smaller one. It is the FSP matrix of Yim et al. (2017); LONDON's :math:`TM` is :math:`M^\top M`.

    Args:
        front: ``(B, C1, H1, W1)``, the earlier map.
        back: ``(B, C2, H2, W2)``, the later map.
    Returns:
        ``(B, C1, C2)``, in units of front times back, at least float32.
    Raises:
        ValueError: where a map is not 4-D, or the batch sizes differ.
    Source: LONDON, section 3, and the authors' code. Deviation: none.
    """
    first, second = _flatten_to_common_size(front, back)
    with _full_precision(first):
        return first @ second.transpose(1, 2) / first.shape[2]


def spectral_norm(matrix: Tensor) -> Tensor:
    r"""Largest singular value of each matrix, with its exact gradient :math:`u v^\top`.

    The dominant eigenvector of the Gram matrix of the smaller side is found by repeated squaring (large matrix
    products, the same work whatever the spectrum), and :math:`\sigma = \lVert A v \rVert` by one step from it.

    Args:
        matrix: ``(..., M, N)``, of any floating type; computed in at least float32.
    Returns:
        ``(...)``, in the units of ``matrix``; 0 with zero gradient for a zero matrix. Not-a-number and infinity
        come out as not-a-number.
    Error: from below; with :math:`r = \sigma_2 / \sigma_1`, the gradient's relative error is about
        :math:`r^{512}`, that of the value about :math:`r^{1024}` (rounding apart). Where :math:`r` is so close to 1
        that this is not small, the value still is: below 1e-3 for every spectrum tested.
    Raises:
        ValueError: where ``matrix`` has fewer than two dimensions. RuntimeError: under ``create_graph=True``, since the
        rank-one formula gives no second derivative.
    """
    if matrix.dim() < 2:
        raise ValueError(f'spectral_norm: expected (..., M, N), got shape {tuple(matrix.shape)}')
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    return _SpectralNorm.apply(wide)


def transmitting_norm(front: Tensor, back: Tensor) -> Tensor:
    r"""Largest singular value of :func:`transmitting_matrix`, per sample, with its exact gradient.

    With unit singular vectors :math:`u, v` of :math:`M`, :math:`\partial\sigma/\partial F_1 = u (F_2^\top v)^\top / HW`
    and :math:`\partial\sigma/\partial F_2 = v (F_1^\top u)^\top / HW`: rank one, so that backward keeps and forms no
    matrix of size C1 x C2.

    Args:
        front: ``(B, C1, H1, W1)``. back: ``(B, C2, H2, W2)``.
    Returns:
        ``(B,)``, at least float32.
    Error and what it raises: see :func:`spectral_norm` and :func:`transmitting_matrix`.
    Source: LONDON, section 3. Deviation: the authors run 5 or 10 power steps on :math:`M M^\top`, unrolled through
        autograd; on zero-mean (pre-ReLU) features that underestimates the value by up to 11 %.
    """
    return _TransmittingNorm.apply(*_flatten_to_common_size(front, back))


def lipschitz_gap(student: Tensor, teacher: Tensor, gap: str = 'log', eps: float = 1e-6) -> Tensor:
    r"""Squared gap of two Lipschitz constants, elementwise.

    ``absolute`` :math:`(s - t)^2` (the authors' code), ``relative`` :math:`((s - t) / (t + \epsilon))^2`, ``log``
    :math:`(\ln(s + \epsilon) - \ln(t + \epsilon))^2`. The last two do not depend on the unit of the features when
    both nets' are scaled alike, which the first does with its square.

    Args:
        student: ``(...)`` not negative. teacher: the same shape. eps: in the units of both.
    Returns:
        ``(...)``; finite for zeros on either side.
    Raises:
        ValueError: for an unknown ``gap``.
    """
    if gap == 'absolute':
        return (student - teacher).square()
    if gap == 'relative':
        return ((student - teacher) / (teacher + eps)).square()
    if gap == 'log':
        return ((student + eps).log() - (teacher + eps).log()).square()
    raise ValueError(f'lipschitz_gap: unknown gap {gap!r}, expected one of {", ".join(GAPS)}')


class _SpectralNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix: Tensor) -> Tensor:
        with _full_precision(matrix):
            sigma, u, v = _top_singular_triple(matrix)
        ctx.save_for_backward(u, v)
        return sigma

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        _refuse_second_derivative()
        u, v = ctx.saved_tensors
        return (grad[..., None] * u)[..., :, None] * v[..., None, :]


class _TransmittingNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, first: Tensor, second: Tensor) -> Tensor:
        with _full_precision(first):
            sigma, u, v = _top_singular_triple(first @ second.transpose(1, 2) / first.shape[2])
        ctx.save_for_backward(first, second, u, v)
        return sigma

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        _refuse_second_derivative()
        first, second, u, v = ctx.saved_tensors
        scale = (grad / first.shape[2])[:, None, None]
        grad_first = grad_second = None
        with _full_precision(first):
            if ctx.needs_input_grad[0]:
                grad_first = (scale * u[:, :, None]) @ (v[:, None, :] @ second)
            if ctx.needs_input_grad[1]:
                grad_second = (scale * v[:, :, None]) @ (u[:, None, :] @ first)
        return grad_first, grad_second


def _refuse_second_derivative() -> None:
    # Gradients are recorded in a backward pass exactly where create_graph=True asked for it. The singular vectors are
    # constants there, so that the graph would be wrong in silence.
    if torch.is_grad_enabled():
        raise RuntimeError(
            'spectral_norm, transmitting_norm: their gradient cannot be differentiated again (create_graph=True); take '
            'this term out of what is differentiated twice, or use torch.linalg.svdvals'
        )


def _top_singular_triple(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest singular value ``(...)`` and its unit vectors ``(..., M)``, ``(..., N)``; zeros for a zero matrix."""
    # Scaled by the largest entry, so that the squares neither overflow nor underflow; infinity turns into nan here.
    largest = matrix.abs().amax((-2, -1), keepdim=True)
    scaled = matrix / torch.where(largest == 0, 1, largest)
    gram = scaled @ scaled.mT if matrix.shape[-2] <= matrix.shape[-1] else scaled.mT @ scaled
    power = gram
    for _ in range(_SQUARINGS):
        power = _divide(power, power.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None])
        power = power @ power
    # power is now close to q q^T: its largest column points along q.
    column = power.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*power.shape[:-1], 1)
    q = _unit((gram @ power.gather(-1, column)).squeeze(-1))
    if matrix.shape[-2] <= matrix.shape[-1]:
        v = _unit((scaled.mT @ q[..., None]).squeeze(-1))
        image = (scaled @ v[..., None]).squeeze(-1)
        u = _unit(image)
    else:
        u = _unit((scaled @ q[..., None]).squeeze(-1))
        image = (scaled.mT @ u[..., None]).squeeze(-1)
        v = _unit(image)
    return torch.linalg.vector_norm(image, dim=-1) * largest[..., 0, 0], u, v


def _divide(x: Tensor, by: Tensor) -> Tensor:
    return x / torch.where(by == 0, 1, by)


def _unit(x: Tensor) -> Tensor:
    return _divide(x, torch.linalg.vector_norm(x, dim=-1, keepdim=True))


def _flatten_to_common_size(front: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps pooled to the smaller height and width, flattened to ``(B, C, HW)``, at least float32."""
    for name, x in (('front', front), ('back', back)):
        if x.dim() != 4:
            raise ValueError(f'transmitting matrix: {name} must be a map (B, C, H, W), got shape {tuple(x.shape)}')
    if front.shape[0] != back.shape[0]:
        raise ValueError(
            f'transmitting matrix: front has batch size {front.shape[0]} and back {back.shape[0]}, '
            'but both must be maps of the same samples'
        )
    size = tuple(map(min, front.shape[2:], back.shape[2:]))
    dtype = torch.promote_types(torch.promote_types(front.dtype, back.dtype), torch.float32)
    maps = []
    for x in (front, back):
        x = x.to(dtype)
        maps.append((x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)).flatten(2))
    return maps[0], maps[1]


def _full_precision(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)
