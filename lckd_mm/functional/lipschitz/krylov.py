"""Leading eigenvectors of a batch of positive semidefinite operators, given only their products with vectors."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_MAX_STEPS = 64


def tolerance(dtype: torch.dtype) -> float:
    """Residual, relative to the eigenvalue, at which the iteration stops.

    The error of the vector is of the order of the residual, that of the value of its square. A larger tolerance would
    accept the second largest eigenvalue more often: of small Gaussian maps in one sample of 6,000 at 1e-3.
    """
    return 1e-9 if dtype == torch.float64 else 1e-4


def leading_eigenvector(
    apply: Callable[[Tensor], Tensor], start: Tensor, tol: float, max_steps: int = _MAX_STEPS
) -> tuple[Tensor, Tensor]:
    r"""Unit eigenvector of the largest eigenvalue, by the Lanczos method with full reorthogonalisation.

    The Krylov space grows by one product at a time until, for every matrix of the batch, the Ritz pair
    :math:`(\theta, x)` has a residual :math:`\lVert A x - \theta x \rVert \le` ``tol`` :math:`\theta`. Then an
    eigenvalue lies within ``tol`` :math:`\theta` of :math:`\theta`, and the angle of x to its eigenvector is to first
    order at most ``tol`` :math:`/ (1 - \lambda_2 / \lambda_1)`. No finite number of products can prove that this is the
    largest eigenvalue. It is the largest one whose eigenvector is not nearly orthogonal to the start; a random start is
    orthogonal to none.

    Args:
        apply: maps x ``(B, 1, n)`` to A x of the same shape; it must be linear.
        start: ``(B, 1, n)``; a zero start stays zero.
        max_steps: the eigenvector is exact after n steps at the latest; a batch that has not converged after
            ``max_steps`` keeps the best vectors found.
    Returns:
        The eigenvalue ``(B, 1, 1)`` and the eigenvector ``(B, 1, n)``. A matrix that contains nan or infinity gives
        nan.
    Source: Golub and Van Loan, Matrix Computations, section 10.3; the stopping rule is from Parlett, The Symmetric
        Eigenvalue Problem, section 11.7.
    """
    batch, _, n = start.shape
    steps = min(n, max_steps)
    capacity = min(steps, 16)
    # Products use the full capacity from the start: on a CPU, products with only a few rows are many times slower.
    basis, projected = start.new_zeros(batch, capacity, n), start.new_zeros(batch, capacity, capacity)
    # Each matrix's result at its last test: the eigenvalue, and the eigenvector's coordinates in the basis.
    values, weights = start.new_zeros(batch, 1, 1), start.new_zeros(batch, 1, capacity)
    waiting: Tensor | slice = slice(None)  # matrices that have not converged
    cut = max(0.1 * tol, 16 * torch.finfo(start.dtype).eps)
    # A new direction of at most this length is noise; the residual is far below the tolerance by then.
    negligible = start.new_zeros(batch, 1, 1)
    x = F.normalize(start, dim=-1, eps=torch.finfo(start.dtype).tiny)
    for j in range(steps):
        basis[:, j : j + 1] = x
        image = apply(x)
        row = torch.bmm(image, basis.mT)
        projected[:, j : j + 1] = row
        negligible = torch.maximum(negligible, torch.linalg.vector_norm(image, dim=-1, keepdim=True) * cut)
        # Orthogonalise twice: after one pass rounding errors remain.
        image = torch.baddbmm(image, row, basis, alpha=-1)
        image = torch.baddbmm(image, torch.bmm(image, basis.mT), basis, alpha=-1)
        beta = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
        last = j + 1 == steps
        if last or j == 2 or j % 2:  # a test takes as long as a step, and synchronises an accelerator
            ritz, vector = _leading_of_small(projected[waiting, : j + 1, : j + 1])
            values[waiting, 0, 0], weights[waiting, 0, : j + 1] = ritz, vector
            # Nan compares as False, so it counts as converged.
            failed = beta[waiting, 0, 0] * vector[:, -1].abs() > tol * ritz
            if last or not bool(failed.any()):
                break
            waiting = failed.nonzero()[:, 0] if isinstance(waiting, slice) else waiting[failed]
        if j + 1 == capacity:
            more = min(steps, 2 * capacity) - capacity
            basis, weights = F.pad(basis, (0, 0, 0, more)), F.pad(weights, (0, more))
            projected = F.pad(projected, (0, more, 0, more))
            capacity += more
        # Once the space is exhausted, the basis is continued with zeros.
        x = image / beta.masked_fill(beta <= negligible, math.inf)
    # The basis is orthonormal only up to rounding.
    return values, F.normalize(torch.bmm(weights, basis), dim=-1)


def generic_start(n: int, like: Tensor) -> Tensor:
    """``(1, 1, n)``: a fixed pseudo-random unit vector; results repeat, and the global random state is untouched."""
    return _generic(n, like.dtype, like.device)


@lru_cache(maxsize=256)
def _generic(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator('cpu').manual_seed(n)
    start = torch.randn(1, 1, n, dtype=torch.float64, device='cpu', generator=generator)
    return F.normalize(start, dim=-1).to(device, dtype)


def _leading_of_small(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue ``(B,)`` and its eigenvector ``(B, k)``, from the lower triangle.

    Runs on the CPU, where such small matrices are factorised fastest.
    """
    # eigh raises on non-finite entries; nan is propagated through the value, and through the basis vectors.
    values, vectors = torch.linalg.eigh(matrix.cpu().nan_to_num(0.0, 0.0, 0.0))
    return values[:, -1].to(matrix) + 0 * matrix[:, -1, -1], vectors[:, :, -1].to(matrix)
