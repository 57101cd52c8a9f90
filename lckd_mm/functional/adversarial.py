"""Lipschitz critics: the functions of their losses, and their gradients' norms.

A critic f returns one real number per sample, without a sigmoid, high for "real" features: the teacher's or a peer's.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PHIS = ('x', 'exp', 'softplus', 'sqrt')
# Above this, exp continues as its tangent: squares of its gradient, e^80, still fit into float32.
_EXP_LIMIT = 40.0


def convex_phi(x: Tensor, phi: str = 'softplus') -> Tensor:
    r"""The function that turns a critic's outputs into a loss, elementwise.

    ``x``: :math:`x`; ``exp``: :math:`e^x`; ``softplus``: :math:`\ln(1 + e^x)`; ``sqrt``: :math:`\sqrt{x^2 + 1} + x`.
    These are increasing and convex, all but the first strictly; an optimal critic then exists and is unique.

    Args:
        x: ``(...)``, float32 or wider.
    Returns:
        ``(...)``. Beyond 40 ``exp`` continues as its tangent (still increasing and convex) to avoid overflow; for
        negative values ``sqrt`` is computed as :math:`1 / (\sqrt{x^2 + 1} - x)` to avoid cancellation to 0.
    Raises:
        ValueError: an unknown ``phi``.
    Source: Zhou et al., Lipschitz Generative Adversarial Nets, ICML 2019, arXiv 1902.05687. Deviation: the tangent.
    """
    if phi == 'x':
        return x
    if phi == 'exp':
        below = x.clamp(max=_EXP_LIMIT).exp()
        return below * (1 + F.relu(x - _EXP_LIMIT))
    if phi == 'softplus':
        return F.softplus(x)
    if phi == 'sqrt':
        root = torch.hypot(x, torch.ones_like(x))
        # Mask the argument of each branch: a nan in the unused branch would reach the gradient.
        negative = x < 0
        return torch.where(negative, 1 / (root - torch.where(negative, x, 0)), root + x)
    raise ValueError(f'convex_phi: unknown phi {phi!r}, expected one of {", ".join(PHIS)}')


def gradient_norms(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    r"""Gradient norm of a critic at each point: :math:`\lVert \nabla f(x_i) \rVert_2`.

    Args:
        critic: returns one number per sample, computed from that sample alone (no BatchNorm).
        x: ``(B, ...)``, float32 or wider.
    Returns:
        ``(B,)``, differentiable with respect to the critic's parameters (double backward); 0 with zero gradient where
        the critic is flat.
    """
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        y = critic(x)
        if not y.requires_grad:
            return x.new_zeros(len(x))
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True, allow_unused=True, materialize_grads=True)
        square = slope.flatten(1).square().sum(1)
        # Avoid the square root at 0, where it has no derivative.
        return torch.where(square > 0, square, 1).sqrt() * (square > 0)
