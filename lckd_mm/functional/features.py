"""Comparisons of feature maps."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .logits import kd_divergence
from .shapes import check_map, check_rank, mean, same_shape


def partial_l2(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Partial squared distance, elementwise: 0 where s <= t <= 0, since a ReLU makes both 0 there.

    .. math:: d = (s - t)^2 \; [s > t \ \text{or}\ t > 0]

    Args:
        student: ``(B, C, H, W)``, connected. teacher: the same shape, after the margin ReLU (:func:`margin_relu`).
    Returns:
        The same shape, in squared units.
    Raises:
        ValueError: where the shapes differ.
    Source: Heo et al., A Comprehensive Overhaul of Feature Distillation (OFD), ICCV 2019, eq. 3. Deviation: none.
    """
    same_shape('partial L2', student, teacher)
    return (student - teacher).square() * ((student > teacher) | (teacher > 0))


def margin_relu(x: Tensor, margin: Tensor) -> Tensor:
    r"""``max(x, m)`` with a negative margin per channel.

    Args:
        x: ``(B, C, ...)``. margin: ``(C,)``.
    Source: OFD, eq. 1. Deviation: none.
    """
    return torch.maximum(x, margin.view(1, -1, *[1] * (x.dim() - 2)).to(x.dtype))


def bn_margin(weight: Tensor, bias: Tensor) -> Tensor:
    r"""Margin of each channel of a BatchNorm's output: the mean of its negative values, assuming a normal distribution.

    .. math:: m = E[x \mid x < 0] = \mu - s\,\frac{\varphi(\mu / s)}{\Phi(-\mu / s)}, \qquad \mu = \beta,\ s = |\gamma|

    and :math:`-3 s` where :math:`\Phi(-\mu / s) \le 0.001`, that is, where almost no value is negative.

    Args:
        weight: :math:`\gamma`, ``(C,)``. bias: :math:`\beta`, ``(C,)``.
    Returns:
        ``(C,)``, with the dtype of ``weight``; computed in float64. A channel with weight 0 is constant: its margin is
        its value if that is negative, otherwise 0.
    Source: OFD, eq. 4, and the authors' code for the second case. Deviation: closed form for all channels at once.
    """
    mean, std = bias.double(), weight.double().abs()
    z = mean / torch.where(std == 0, 1, std)
    tail = torch.special.ndtr(-z)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    margin = torch.where(tail > 0.001, mean - std * density / tail.clamp(min=1e-300), -3 * std)
    return torch.where(std == 0, mean.clamp(max=0), margin).to(weight.dtype)


def attention_map(x: Tensor) -> Tensor:
    r"""Spatial attention: the mean of squares over channels, flattened and normalised to unit length.

    .. math:: a = \mathrm{vec}\!\left(\tfrac1C \sum_c x_c^2\right), \qquad a / \lVert a \rVert_2

    Args:
        x: ``(B, C, H, W)``.
    Returns:
        ``(B, HW)``; zeros for a zero map, and shorter than 1 where all features are below 1e-6.
    Source: Zagoruyko and Komodakis, Paying More Attention to Attention (AT), ICLR 2017, p = 2. Deviation: none.
    """
    check_map('attention map', x)
    return F.normalize(x.square().mean(1).flatten(1), dim=1)


def activation_boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    r"""Squared hinge on the signs of the features before a ReLU, elementwise.

    .. math:: [t > 0]\,\max(0, \mu - s)^2 + [t \le 0]\,\max(0, \mu + s)^2

    Args:
        student: ``(B, C, H, W)``, connected, before the ReLU. teacher: the same shape. margin: :math:`\mu`, in their
            units.
    Returns:
        The same shape, in squared units.
    Raises:
        ValueError: where the shapes differ.
    Source: Heo et al., Knowledge Transfer via Distillation of Activation Boundaries (AB), AAAI 2019, eq. 5.
    Deviation: none.
    """
    same_shape('activation boundary', student, teacher)
    return F.relu(margin - torch.where(teacher > 0, student, -student)).square()


def factor_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Mean absolute difference of two factors, each flattened and normalised to unit length.

    .. math:: \mathrm{mean}\,\bigl|\, s / \lVert s \rVert_2 - t / \lVert t \rVert_2 \,\bigr|

    Args:
        student: ``(B, ...)``. teacher: the same shape.
    Returns:
        A scalar, without unit; small, since the entries of a unit vector shrink with the root of its length.
    Raises:
        ValueError: where the shapes differ.
    Source: Kim, Park, Kwak, Paraphrasing Complex Network: Network Compression via Factor Transfer (FT), NeurIPS 2018,
        eq. 3, p = 1. Deviation: the mean instead of the sum.
    """
    same_shape('factor distance', student, teacher)
    check_rank('factor distance', student, 2, '(B, ...)')
    return mean((F.normalize(student.flatten(1)) - F.normalize(teacher.flatten(1))).abs())


def standardised(x: Tensor) -> Tensor:
    r"""Each channel with mean 0 and standard deviation 1 over batch and positions.

    .. math:: \hat x = \frac{x - \mu_c}{s_c + 10^{-6}}, \qquad s_c \ \text{the unbiased standard deviation}

    Args:
        x: ``(B, C, ...)``.
    Returns:
        The same shape, without unit; zeros for a channel that is constant.
    Source: Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient,
        NeurIPS 2022. Deviation: none; under several ranks each takes the statistics of its own samples.
    """
    check_rank('standardised', x, 3, '(B, C, ...)')
    rows = x.transpose(0, 1).flatten(1)
    rows = rows - rows.mean(1, keepdim=True) if rows.shape[1] else rows
    variance = rows.square().sum(1, keepdim=True) / max(rows.shape[1] - 1, 1)
    # Avoid the square root at 0, where it has no derivative.
    deviation = torch.where(variance > 0, variance, 1).sqrt() * (variance > 0)
    return (rows / (deviation + 1e-6)).unflatten(1, (len(x), *x.shape[2:])).transpose(0, 1)


def attended_distance(student: Tensor, teacher: Tensor, attention: Tensor) -> Tensor:
    r"""Squared distance between maps, each channel weighted by its attention.

    .. math:: \frac1B \sum_b \sum_c \rho_{bc} \; \mathrm{mean}_{hw}\, (s_{bc} - t_{bc})^2

    Args:
        student: ``(B, C, ...)``, connected. teacher: the same shape. attention: :math:`\rho`, ``(B, C)``.
    Returns:
        A scalar, in squared units.
    Raises:
        ValueError: where the shapes differ.
    Source: Wang et al., Pay Attention to Features, Transfer Learn Faster CNNs (AFD), ICLR 2020. Deviation: the mean
        over positions, so that a map's size does not matter.
    """
    same_shape('attended distance', student, teacher)
    check_rank('attended distance', student, 3, '(B, C, ...)')
    return mean((attention * (student - teacher).square().flatten(2).mean(2)).sum(1))


def channel_divergence(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    r"""Kullback-Leibler divergence of each channel's softmax over the positions.

    .. math:: \tau^2 \sum_i p^T_i (\ln p^T_i - \ln p^S_i), \qquad p = \mathrm{softmax}_i(x_{c,i} / \tau)

    Args:
        student: ``(B, C, ...)``, connected. teacher: the same shape. tau: temperature.
    Returns:
        ``(B, C)``, in nats times :math:`\tau^2`.
    Raises:
        ValueError: where the shapes differ.
    Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction (CWD), ICCV 2021, eq. 3-5.
    Deviation: none.
    """
    same_shape('channel divergence', student, teacher)
    check_rank('channel divergence', student, 3, '(B, C, ...)')
    return kd_divergence(student.flatten(2), teacher.flatten(2), tau, dim=2)
