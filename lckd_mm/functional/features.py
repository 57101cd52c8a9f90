"""Margins of features before a ReLU, and statistics of channels."""

import math

import torch
from torch import Tensor


def bn_margin(weight: Tensor, bias: Tensor) -> Tensor:
    r"""Margin of each channel of a BatchNorm's output: the mean of its negative values, assuming a normal distribution.

    .. math:: m = E[x \mid x < 0] = \mu - s\,\frac{\varphi(\mu / s)}{\Phi(-\mu / s)}, \qquad \mu = \beta,\ s = |\gamma|

    and :math:`-3 s` where :math:`\Phi(-\mu / s) \le 0.001`, that is, where almost no value is negative.

    Args:
        weight: :math:`\gamma`, ``(C,)``. bias: :math:`\beta`, ``(C,)``.
    Returns:
        ``(C,)``, with the dtype of ``weight``; computed in float64. A channel with weight 0 is constant: its margin is
        its value if that is negative, otherwise 0.
    Source: Heo et al., A Comprehensive Overhaul of Feature Distillation (OFD), ICCV 2019, eq. 4, and the authors' code
        for the second case. Deviation: closed form for all channels at once.
    """
    mean, std = bias.double(), weight.double().abs()
    z = mean / torch.where(std == 0, 1, std)
    tail = torch.special.ndtr(-z)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    margin = torch.where(tail > 0.001, mean - std * density / tail.clamp(min=1e-300), -3 * std)
    return torch.where(std == 0, mean.clamp(max=0), margin).to(weight.dtype)


def standardised(x: Tensor) -> Tensor:
    r"""Each channel with mean 0 and deviation 1 over batch and positions.

    .. math:: \hat x = \frac{x - \mu_c}{s_c + 10^{-6}}

    Args:
        x: ``(B, C, ...)``; under several ranks each takes the statistics of its own samples.
    Returns:
        The same shape, without unit; a channel that is constant but for rounding is 0, and gets no gradient.
    Source: PKDLoss and CrossKD use it with these constants and the unbiased deviation. Deviation: that of a constant
        channel.
    """
    rows = x.transpose(0, 1).flatten(1)
    if not rows.shape[1]:
        return x
    centred = rows - rows.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / max(rows.shape[1] - 1, 1)
    varies = above_rounding(variance, rows, 1)
    # A constant channel is 0, without the gradient of 1e6 that the division would give.
    deviation = torch.where(varies, variance, 1).sqrt() + 1e-6
    return torch.where(varies, centred / deviation, 0).unflatten(1, (len(x), *x.shape[2:])).transpose(0, 1)


def above_rounding(variance: Tensor, x: Tensor, axis: int) -> Tensor:
    """Whether a variance along an axis is more than the rounding of a mean leaves of equal values."""
    rounding = 8 * torch.finfo(x.dtype).eps * x.detach().abs().amax(axis, keepdim=True)
    return variance > rounding.square()
