"""Comparisons of two nets' sensitivity to their input."""

import torch
from torch import Tensor

from .shapes import check_rank, mean, same_shape


def directional_gap(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], sigma: float) -> Tensor:
    r"""Squared gap between the nets' Jacobians along one random direction, by finite differences.

    .. math:: \mathrm{mean}\,\bigl((f_S(x + \xi) - f_S(x)) - (f_T(x + \xi) - f_T(x))\bigr)^2 / \sigma^2

    With :math:`\xi \sim N(0, \sigma^2 I)` its expectation is
    :math:`\lVert J_S - J_T \rVert_F^2` divided by the number of outputs, up to terms of order :math:`\sigma^2`.

    Args:
        student, teacher: the outputs at x and at x plus noise, ``(B, ...)``, all of equal shape.
        sigma: the noise's standard deviation.
    Returns:
        A scalar, in squared units of outputs over inputs.
    Raises:
        ValueError: shapes that differ between the nets.
    Source: Srinivas and Fleuret, Knowledge Transfer with Jacobian Matching, ICML 2018, proposition 1, without its
        zeroth-order term. Deviation: the difference of outputs, so that only Jacobians are compared.
    """
    for ours, theirs in zip(student, teacher):
        same_shape('Jacobian gap', ours, theirs)
    return mean(((student[1] - student[0]) - (teacher[1] - teacher[0])).square()) / sigma**2


def unit_gap(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared distance of two normalised gradients, averaged over the batch; equals 2 (1 - cosine).

    .. math:: \mathrm{mean}_b \left\lVert g_S / \lVert g_S \rVert - g_T / \lVert g_T \rVert \right\rVert^2

    Args:
        student, teacher: ``(B, ...)``. A zero gradient has no direction: it stays zero and gets no gradient.
    Returns:
        A scalar between 0 and 4, without unit; 0 for an empty batch.
    Raises:
        ValueError: shapes that differ between the nets, or have only the batch dimension.
    Source: Srinivas and Fleuret 2018, eq. 6. Deviation: none.
    """
    same_shape('unit gap', student, teacher)
    check_rank('unit gap', student, 2, '(B, ...)')
    a, b = _unit(student.flatten(1)), _unit(teacher.flatten(1))
    return mean((a - b).square().sum(1))


def _unit(x: Tensor) -> Tensor:
    # Divide by the largest entry first: the square of a small gradient, or the cube in the derivative, would underflow.
    largest = x.detach().abs().amax(1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    square = x.square().sum(1, keepdim=True)
    # Avoid the square root at 0, where it has no derivative.
    return x * torch.where(square > 0, square, 1).rsqrt()
