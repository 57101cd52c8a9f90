"""The largest singular value of plain matrices, with its exact gradient."""

import torch
from torch import Tensor

from .krylov import generic_start, leading_eigenvector, tolerance
from .precision import full_precision, inverse_scale, refuse_second_derivative, wide_type


def spectral_norm(matrix: Tensor) -> Tensor:
    r"""Largest singular value of each matrix, with its exact gradient :math:`u v^\top`.

    Args:
        matrix: ``(..., M, N)``, any floating-point dtype; computed in at least float32.
    Returns:
        ``(...)``, in the units of ``matrix``; 0 with zero gradient for a zero matrix; nan for nan or infinite entries.
    Error: as :func:`~lckd_mm.functional.transmitting_norms`: a Lanczos iteration with the same stopping rule.
    Raises:
        ValueError: a ``matrix`` with fewer than two dimensions, without entries, or complex. RuntimeError: under
            ``create_graph=True``, since the rank-one formula gives no second derivative.
    """
    if matrix.dim() < 2:
        raise ValueError(f'spectral_norm: expected (..., M, N), got shape {tuple(matrix.shape)}')
    if not matrix.shape[-2:].numel():
        raise ValueError(f'spectral_norm: a matrix without entries has no singular value, got {tuple(matrix.shape)}')
    return _SpectralNorm.apply(matrix.to(wide_type(matrix)))


class _SpectralNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix: Tensor) -> Tensor:
        with full_precision(matrix):
            sigma, u, v = leading_triple(matrix.reshape(-1, *matrix.shape[-2:]))
        ctx.save_for_backward(u, v)
        ctx.shape = matrix.shape
        return sigma.reshape(matrix.shape[:-2])

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        refuse_second_derivative()
        u, v = ctx.saved_tensors
        return ((grad.reshape(-1, 1) * u)[:, :, None] * v[:, None]).reshape(ctx.shape)


def leading_triple(matrix: Tensor, tol: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Largest singular value ``(B,)`` and its unit vectors u ``(B, M)``, v ``(B, N)``; v is 0 for a zero matrix."""
    if matrix.shape[1] > matrix.shape[2]:
        sigma, v, u = leading_triple(matrix.mT, tol)
        return sigma, u, v
    scale = inverse_scale(matrix, (1, 2))

    def apply(u: Tensor) -> tuple[Tensor, Tensor]:
        image = torch.bmm(u * scale, matrix)
        return torch.bmm(image * scale, matrix.mT), image

    start = generic_start(matrix.shape[1], matrix).expand(len(matrix), 1, -1)
    _, u, image = leading_eigenvector(apply, start, tol or tolerance(matrix.dtype))
    sigma = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
    v = image / torch.where(sigma == 0, 1, sigma)
    return (sigma / scale).flatten(), u[:, 0], v[:, 0]
