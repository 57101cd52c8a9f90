"""Local Lipschitz constants of a net, to compare the transmitting norm with; all norms are Euclidean."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .lipschitz.krylov import generic_start, leading_eigenvector
from .lipschitz.precision import full_precision, inverse_scale, wide_type


def local_lipschitz(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    tol: float = 1e-5,
    max_steps: int = 64,
    residual: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Local Lipschitz constant at each input: the largest singular value of the Jacobian there.

    .. math:: \sigma_1(J_f(x)), \qquad J_f(x) = \partial f(x) / \partial x

    The Jacobian is never formed: one forward pass, then two backward passes per Lanczos step, for :math:`J u` (the
    gradient of the gradient) and :math:`J^\top v`.

    Args:
        function: a module or function that treats samples independently and that torch can differentiate twice (not
            fused attention: run that under ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``); a module must be in
            evaluation mode, or have no BatchNorm.
        inputs: ``(B, ...)``, floating point; the iteration runs in at least float32.
        tol: stop at this residual, relative to the eigenvalue of :math:`J^\top J`.
        max_steps: maximum number of iterations; each stores one more vector of the inputs' size.
        residual: also return, for one more product, :math:`\lVert J^\top J v - \sigma^2 v \rVert / \sigma^2`, where v
            is the leading right singular vector. If it is above ``tol``, ``max_steps`` was too small.
    Returns:
        ``(B,)``, in units of output over input, without gradient; 0 where the function is flat. With ``residual``, a
        pair of these and the residuals ``(B,)``.
    Error: from below; relative error about ``tol`` :math:`^2` if the largest two singular values differ, otherwise at
        most ``tol``; :func:`~lckd_mm.functional.transmitting_norms` describes the failure with close singular values.
    Raises:
        ValueError: a module whose BatchNorm would couple the samples of the batch.
    Source: the definition; the supremum over a region is its Lipschitz constant there (Federer 1969, 3.1.6).
    """
    if isinstance(function, nn.Module):
        for name, module in function.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
                raise ValueError(
                    f'local_lipschitz: BatchNorm {name!r} takes statistics of the batch, so that no sample has a '
                    'constant of its own; call eval() on the module first'
                )
    sigma, _, rest = steepest(function, inputs, tol, max_steps, residual)
    return (sigma, rest) if residual else sigma


def steepest(
    function: Callable[[Tensor], Tensor], inputs: Tensor, tol: float, max_steps: int = 64, check: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`local_lipschitz`, the right singular vector ``(B, ...)``, and the residuals (zeros without ``check``).

    Values and residuals are zeros where the function is flat.
    """
    dtype = wide_type(inputs)
    nothing = inputs.new_zeros(len(inputs), dtype=dtype)
    flat_everywhere = nothing, torch.zeros_like(inputs), nothing
    if not inputs.numel():
        return flat_everywhere
    with torch.inference_mode(False), torch.enable_grad(), full_precision(inputs):
        x = inputs.detach().clone().requires_grad_()
        y = function(x.clone())  # a copy, since the function may work in place
        # `pulled` is linear in the cotangent, so its gradient is the forward derivative.
        cotangent = torch.zeros_like(y).requires_grad_()
        pulled = None
        if y.requires_grad:
            (pulled,) = torch.autograd.grad(y, x, cotangent, create_graph=True, allow_unused=True)
        if pulled is None or not pulled.requires_grad:
            return flat_everywhere

        def jacobian(u: Tensor) -> Tensor:
            (image,) = torch.autograd.grad(pulled, cotangent, u.view_as(x).to(x.dtype), retain_graph=True)
            return image.reshape(len(u), 1, -1).to(dtype)

        def apply(u: Tensor) -> Tensor:
            image = (jacobian(u) * scale).view_as(y).to(y.dtype)
            (product,) = torch.autograd.grad(y, x, image, retain_graph=True)
            return product.reshape(u.shape).to(dtype) * scale

        start = generic_start(x[0].numel(), x.to(dtype)).expand(len(x), 1, -1)
        scale = inverse_scale(jacobian(start))
        square, vector = leading_eigenvector(apply, start, tol, max_steps)
        sigma = (torch.linalg.vector_norm(jacobian(vector) * scale, dim=-1, keepdim=True) / scale).flatten()
        rest = nothing
        if check:
            gap = torch.linalg.vector_norm(apply(vector) - square * vector, dim=-1, keepdim=True)
            rest = torch.where(square == 0, 0, gap / square).flatten().detach()
        return sigma.detach(), vector.view_as(x).to(x.dtype).detach(), rest
