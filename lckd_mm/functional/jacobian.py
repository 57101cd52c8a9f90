"""Comparisons of how two nets answer to a change of their input."""

import torch
from torch import Tensor

from .shapes import check_rank, mean


def directional_gap(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], sigma: float) -> Tensor:
    r"""Squared gap of the nets' Jacobians along one random direction, by finite differences.

    .. math:: \mathrm{mean}\,\bigl((f_S(x + \xi) - f_S(x)) - (f_T(x + \xi) - f_T(x))\bigr)^2 / \sigma^2

    With :math:`\xi \sim N(0, \sigma^2 I)` its expectation is
    :math:`\lVert J_S - J_T \rVert_F^2` over the number of outputs, up to terms of the order of :math:`\sigma^2`.

    Args:
        student, teacher: the outputs at x and at x plus noise, ``(B, ...)``, all of one shape.
        sigma: the noise's standard deviation.
    Returns:
        A scalar, in squared units of outputs over inputs.
    Raises:
        ValueError: where the nets' shapes differ.
    Source: Srinivas and Fleuret, Knowledge Transfer with Jacobian Matching, ICML 2018, proposition 1, without its term
        of order zero. Deviation: the difference of outputs, so that only Jacobians are compared.
    """
    for ours, theirs in zip(student, teacher):
        if ours.shape != theirs.shape:
            raise ValueError(
                f'Jacobian gap: student {tuple(ours.shape)} and teacher {tuple(theirs.shape)} differ in shape'
            )
    return mean(((student[1] - student[0]) - (teacher[1] - teacher[0])).square()) / sigma**2


def unit_gap(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared distance of two gradients, each of unit length, mean over the batch: twice one minus their cosine.

    .. math:: \mathrm{mean}_b \left\lVert g_S / \lVert g_S \rVert - g_T / \lVert g_T \rVert \right\rVert^2

    Args:
        student, teacher: ``(B, ...)``. A zero gradient has no direction: it stays zero, and gives no gradient.
    Returns:
        A scalar between 0 and 4, without unit; 0 for an empty batch.
    Raises:
        ValueError: where the nets' shapes differ, or have no dimension but the batch.
    Source: Srinivas and Fleuret 2018, eq. 6. Deviation: none.
    """
    if student.shape != teacher.shape:
        raise ValueError(f'unit gap: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape')
    check_rank('unit gap', student, 2, '(B, ...)')
    a, b = _unit(student.flatten(1)), _unit(teacher.flatten(1))
    return mean((a - b).square().sum(1))


def _unit(x: Tensor) -> Tensor:
    # By its largest entry first: the square of a small gradient, or the cube in the derivative, would underflow.
    largest = x.detach().abs().amax(1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    square = x.square().sum(1, keepdim=True)
    # The root of zero has no derivative: it is not taken there.
    return x * torch.where(square > 0, square, 1).rsqrt()
