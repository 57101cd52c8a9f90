"""Softened divergences between the class scores of two nets."""

import torch.nn.functional as F
from torch import Tensor


def kd_divergence(student: Tensor, teacher: Tensor, tau: float = 1.0, dim: int = 1) -> Tensor:
    r"""Kullback-Leibler divergence of softened softmax scores, per sample and position.

    .. math:: \tau^2 \sum_c p^T_c (\ln p^T_c - \ln p^S_c), \qquad p = \mathrm{softmax}(z / \tau)

    Args:
        student: logits with the classes along ``dim``. teacher: the same shape. tau: temperature.
    Returns:
        The shape of ``student`` without ``dim``, in nats times :math:`\tau^2`.
    Raises:
        ValueError: where the shapes differ.
    Source: Hinton, Vinyals, Dean 2015, section 2. Deviation: none; the factor :math:`\tau^2` is theirs, and keeps
        the gradient's size independent of the temperature.
    """
    _same_shape(student, teacher)
    log_p_student = F.log_softmax(student / tau, dim)
    log_p_teacher = F.log_softmax(teacher / tau, dim)
    return (log_p_teacher.exp() * (log_p_teacher - log_p_student)).sum(dim) * tau**2


def binary_kd_divergence(student: Tensor, teacher: Tensor, tau: float = 1.0, dim: int = 1) -> Tensor:
    r"""The same for heads whose classes are independent sigmoids: the sum over classes of binary divergences.

    .. math:: \tau^2 \sum_c \left[ p^T_c \ln\frac{p^T_c}{p^S_c} + (1 - p^T_c) \ln\frac{1 - p^T_c}{1 - p^S_c} \right],
              \qquad p = \mathrm{sigmoid}(z / \tau)

    Arguments, result and what it raises: as :func:`kd_divergence`.
    """
    _same_shape(student, teacher)
    z_student, z_teacher = student / tau, teacher / tau
    p = z_teacher.sigmoid()
    # ln sigmoid(z) and ln (1 - sigmoid(z)) = ln sigmoid(-z), each stable where it is far below 0.
    positive = p * (F.logsigmoid(z_teacher) - F.logsigmoid(z_student))
    negative = (1 - p) * (F.logsigmoid(-z_teacher) - F.logsigmoid(-z_student))
    return (positive + negative).sum(dim) * tau**2


def _same_shape(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f'knowledge distillation on logits: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} '
            'differ in shape; both nets must score the same classes at the same positions'
        )
