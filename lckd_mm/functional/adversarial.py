"""Losses of critics and students, and the penalties that bound a critic's gradient.

A critic f returns one real number per sample, without a sigmoid, high for "real" features: the teacher's or a peer's.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import same_shape

PHIS = ('x', 'exp', 'softplus', 'sqrt', 'hinge', 'lsgan')
SLOPES = ('max', 'max-target', 'gp', 'lp', 'zero')
# Above this, exp continues as its tangent: squares of its gradient, e^80, still fit into float32.
_EXP_LIMIT = 40.0


def convex_phi(x: Tensor, phi: str = 'softplus') -> Tensor:
    r"""The function that turns a critic's outputs into a loss, elementwise.

    ``x``: :math:`x`; ``exp``: :math:`e^x`; ``softplus``: :math:`\ln(1 + e^x)`; ``sqrt``: :math:`\sqrt{x^2 + 1} + x`.
    These are increasing and convex, all but the first strictly; an optimal critic then exists and is unique. For
    comparison, two that are flat or decreasing in part: ``hinge``: :math:`\max(0, 1 + x)`, ``lsgan``:
    :math:`(x + 1)^2`.

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
    if phi == 'hinge':
        return (1 + x).clamp(min=0)
    if phi == 'lsgan':
        return (x + 1).square()
    raise ValueError(f'convex_phi: unknown phi {phi!r}, expected one of {", ".join(PHIS)}')


def critic_loss(fake: Tensor, real: Tensor, phi: str = 'softplus') -> Tensor:
    r"""The critic's loss without its penalty: :math:`E\,\phi(f(fake)) + E\,\phi(-f(real))`.

    Args:
        fake, real: the critic's outputs, ``(B,)`` each.
    Returns:
        A scalar.
    Source: Zhou et al. 2019, eq. 4 with :math:`\varphi(x) = \phi(-x)`.
    """
    return convex_phi(fake, phi).mean() + convex_phi(-real, phi).mean()


def fooling_loss(fake: Tensor, phi: str | None = None) -> Tensor:
    r"""The student's loss: :math:`-E\,f(fake)`, or :math:`E\,\phi(-f(fake))` with a phi.

    Args:
        fake: the critic's outputs ``(B,)`` on the student's features.
    """
    return -fake.mean() if phi is None else convex_phi(-fake, phi).mean()


def interpolates(fake: Tensor, real: Tensor, share: Tensor) -> Tensor:
    """Points between pairs of samples: ``share * real + (1 - share) * fake``.

    Args:
        fake, real: ``(B, ...)`` of equal shape. share: ``(B,)``, between 0 and 1.
    Raises:
        ValueError: shapes that differ.
    """
    same_shape('interpolates', fake, real)
    share = share.view(-1, *[1] * (fake.dim() - 1))
    return share * real + (1 - share) * fake


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


def slope_penalty(norms: Tensor, kind: str = 'max', target: float = 1.0) -> Tensor:
    r"""Penalty on the gradient norms :math:`s_i` of a critic.

    ``max`` (MaxGP): :math:`(\max_i s_i)^2`; ``max-target``: :math:`(\max_i s_i - c)^2`; ``gp``: mean
    :math:`(s_i - c)^2`; ``lp``: mean :math:`\max(0, s_i - c)^2`; ``zero``: mean :math:`s_i^2`.

    Args:
        norms: ``(B,)``, from :func:`gradient_norms`. target: c.
    Returns:
        A scalar.
    Raises:
        ValueError: an unknown ``kind``.
    Source: Zhou et al. 2019 (MaxGP); Gulrajani et al. 2017 (GP); Petzka et al. 2018 (LP).
    """
    if kind == 'max':
        return norms.amax().square()
    if kind == 'max-target':
        return (norms.amax() - target).square()
    if kind == 'gp':
        return (norms - target).square().mean()
    if kind == 'lp':
        return (norms - target).clamp(min=0).square().mean()
    if kind == 'zero':
        return norms.square().mean()
    raise ValueError(f'slope_penalty: unknown kind {kind!r}, expected one of {", ".join(SLOPES)}')
