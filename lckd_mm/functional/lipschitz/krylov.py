"""The leading eigenvector of a positive semidefinite operator that is known by its products alone, batch by batch."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_MAX_STEPS = 64


def tolerance(dtype: torch.dtype) -> float:
    """Residual over eigenvalue at which the iteration stops.

    The error of a vector is of the order of the residual, that of the value of its square; yet where only the value is
    wanted a larger one would not do: it takes a rival next to the top for the top more often.
    """
    return 1e-9 if dtype == torch.float64 else 1e-3


def leading_eigenvector(
    apply: Callable[[Tensor], tuple[Tensor, ...]], start: Tensor, tol: float, max_steps: int = _MAX_STEPS
) -> tuple[Tensor, ...]:
    r"""Unit eigenvector of the largest eigenvalue, by the Lanczos method with full reorthogonalisation.

    The Krylov space grows by one product at a time until, for every matrix of the batch, the Ritz pair
    :math:`(\theta, x)` has a residual :math:`\lVert A x - \theta x \rVert \le` ``tol`` :math:`\theta`. Then an
    eigenvalue lies within ``tol`` :math:`\theta` of :math:`\theta`, and the angle of x to its eigenvector is to first
    order at most ``tol`` :math:`/ (1 - \lambda_2 / \lambda_1)`. That it is the largest eigenvalue, no finite number of
    products can prove; it is the largest of which the start has more than a trace, and a generic start has a share of
    all.

    Args:
        apply: x ``(B, 1, n)`` to a tuple of A x, of the same shape, and any further tensors ``(B, 1, m)`` linear in x.
        start: ``(B, 1, n)``; a zero start stays zero.
        max_steps: the eigenvector is exact after n steps at the latest; a batch that has not converged after
            ``max_steps`` keeps the best vector found.
    Returns:
        The eigenvalue ``(B, 1, 1)``, the eigenvector ``(B, 1, n)`` and the further tensors for it: linear, so that they
        cost no product more. A matrix that holds nan or infinity gives nan.
    Source: Golub and Van Loan, Matrix Computations, section 10.3; the stopping rule is Parlett's, The Symmetric
        Eigenvalue Problem, section 11.7. Deviation: the products' side results are combined, too.
    """
    batch, _, n = start.shape
    steps = min(n, max_steps)
    # A test at once would trust an unlucky start; and the slowest of many takes longer.
    first_test = 3 if batch <= 8 else 5
    capacity = min(steps, 8)
    # All of its room takes part from the first: on a CPU products with a few rows alone are many times slower.
    basis, projected = start.new_zeros(batch, capacity, n), start.new_zeros(batch, capacity, capacity)
    # What each passed the test with: the value, and the weights of the basis in the vector.
    values, weights = start.new_zeros(batch, 1, 1), start.new_zeros(batch, 1, capacity)
    images: list[tuple[Tensor, ...]] = []
    waiting: Tensor | slice = slice(None)  # those that have not passed
    tiny, cut = torch.finfo(start.dtype).tiny, max(0.1 * tol, 16 * torch.finfo(start.dtype).eps)
    # Up to it a new direction is noise, and the residual has long passed.
    negligible = start.new_zeros(batch, 1, 1)
    x = basis[:, :1]
    torch.div(start, torch.linalg.vector_norm(start, dim=-1, keepdim=True).clamp(min=tiny), out=x)
    for j in range(steps):
        image, *rest = apply(x)
        images.append(tuple(rest))
        row = torch.bmm(image, basis.mT)
        projected[:, j : j + 1] = row
        if j < 2:
            negligible = torch.maximum(negligible, torch.linalg.vector_norm(image, dim=-1, keepdim=True) * cut)
        # Twice is enough: one pass leaves what rounding brought back in.
        image = torch.baddbmm(image, row, basis, alpha=-1)
        image = torch.baddbmm(image, torch.bmm(image, basis.mT), basis, alpha=-1)
        beta = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
        last = j + 1 == steps
        # Each test waits for an accelerator to catch up, so there it is made less often.
        if last or (j + 1 >= first_test and (start.device.type == 'cpu' or j % 2)):
            ritz, vector = _leading_of_small(projected[waiting, : j + 1, : j + 1])
            values[waiting, 0, 0], weights[waiting, 0, : j + 1] = ritz, vector
            # Nan does not fail.
            failed = beta[waiting, 0, 0] * vector[:, -1].abs() > tol * ritz
            if last or not bool(failed.any()):
                break
            waiting = failed.nonzero()[:, 0] if isinstance(waiting, slice) else waiting[failed]
            negligible = values * cut
        if j + 1 == capacity:
            more = min(steps, 2 * capacity) - capacity
            basis, weights = F.pad(basis, (0, 0, 0, more)), F.pad(weights, (0, more))
            projected = F.pad(projected, (0, more, 0, more))
            capacity += more
        x = basis[:, j + 1 : j + 2]
        # Where the space is exhausted, the basis goes on with zeros.
        torch.div(image, beta.masked_fill(beta <= negligible, math.inf), out=x)
    vector = torch.bmm(weights, basis)
    # The basis is orthonormal up to rounding; the images follow the vector.
    inverse = 1 / torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp(min=tiny)
    weights = weights * inverse
    return (
        values,
        vector * inverse,
        *(torch.bmm(weights[..., : j + 1], torch.cat(column, 1)) for column in zip(*images)),
    )


def generic_start(n: int, like: Tensor) -> Tensor:
    """``(1, 1, n)``: a fixed unit vector without structure, so that no random number is drawn and results repeat."""
    return _generic(n, like.dtype, like.device)


@lru_cache(maxsize=256)
def _generic(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator('cpu').manual_seed(n)
    start = torch.randn(1, 1, n, dtype=torch.float64, device='cpu', generator=generator)
    return F.normalize(start, dim=-1).to(device, dtype)


def _leading_of_small(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue ``(B,)`` and its vector ``(B, k)`` of what stands in the lower triangle.

    On the CPU, where a factorisation of so small matrices costs least.
    """
    # eigh refuses what is not finite: the value carries it on here, and the vectors of the basis themselves.
    values, vectors = torch.linalg.eigh(matrix.cpu().nan_to_num(0.0, 0.0, 0.0))
    return values[:, -1].to(matrix) + 0 * matrix[:, -1, -1], vectors[:, :, -1].to(matrix)
