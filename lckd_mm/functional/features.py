"""Margins of features before a ReLU."""

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
