"""The leading eigenvector of a positive semidefinite operator that is known by its products alone, batch by batch."""

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
    basis, projected = start.new_empty(batch, capacity, n), start.new_zeros(batch, capacity, capacity)
    # What each passed the test with: the value, and the weights of the basis in the vector.
    values, weights = start.new_zeros(batch, 1, 1), start.new_zeros(batch, 1, capacity)
    images: list[tuple[Tensor, ...]] = []
    waiting: Tensor | slice = slice(None)  # those that have not passed
    tiny, rounding = torch.finfo(start.dtype).tiny, 16 * torch.finfo(start.dtype).eps
    x = start / torch.linalg.vector_norm(start, dim=-1, keepdim=True).clamp(min=tiny)
    for j in range(steps):
        if j == capacity:
            more = min(steps, 2 * capacity) - capacity
            basis, weights = F.pad(basis, (0, 0, 0, more)), F.pad(weights, (0, more))
            projected = F.pad(projected, (0, more, 0, more))
            capacity += more
        basis[:, j : j + 1] = x
        image, *rest = apply(x)
        images.append(tuple(rest))
        known = basis[:, : j + 1]
        row = torch.bmm(image, known.mT)
        projected[:, j : j + 1, : j + 1] = row
        # Twice is enough: one pass leaves what rounding brought back in.
        image = image - torch.bmm(row, known)
        image = image - torch.bmm(torch.bmm(image, known.mT), known)
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
        # Where nothing but rounding is left, the space is exhausted: the basis goes on with zeros, not with noise.
        left = beta > rounding * torch.linalg.vector_norm(row, dim=-1, keepdim=True)
        x = image * torch.where(left, 1 / beta, 0)
    weights = weights[..., : j + 1]
    vector = torch.bmm(weights, known)
    # The basis is orthonormal up to rounding; the images follow the vector.
    inverse = 1 / torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp(min=tiny)
    weights = weights * inverse
    return values, vector * inverse, *(torch.bmm(weights, torch.cat(column, 1)) for column in zip(*images))


def generic_start(n: int, like: Tensor) -> Tensor:
    """``(1, 1, n)``: a fixed unit vector without structure, so that no random number is drawn and results repeat."""
    return _generic(n).to(like)


@lru_cache(maxsize=64)
def _generic(n: int) -> Tensor:
    generator = torch.Generator('cpu').manual_seed(n)
    return F.normalize(torch.randn(1, 1, n, dtype=torch.float64, device='cpu', generator=generator), dim=-1)


def _leading_of_small(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue ``(B,)`` and its vector ``(B, k)`` of what stands in the lower triangle.

    On the CPU, where a factorisation of so small matrices costs least.
    """
    # eigh refuses what is not finite: the value carries it on here, and the vectors of the basis themselves.
    values, vectors = torch.linalg.eigh(matrix.cpu().nan_to_num(0.0, 0.0, 0.0))
    return values[:, -1].to(matrix) + 0 * matrix[:, -1, -1], vectors[:, :, -1].to(matrix)
