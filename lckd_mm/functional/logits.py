"""Softened divergences between the class scores of two nets."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import check_rank


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
    _check(student, teacher, dim)
    log_p_student = F.log_softmax(student / tau, dim)
    log_p_teacher = F.log_softmax(teacher / tau, dim)
    return (log_p_teacher.exp() * (log_p_teacher - log_p_student)).sum(dim) * tau**2


def binary_kd_divergence(student: Tensor, teacher: Tensor, tau: float = 1.0, dim: int = 1) -> Tensor:
    r"""The same for heads whose classes are independent sigmoids: the sum over classes of binary divergences.

    .. math:: \tau^2 \sum_c \left[ p^T_c \ln\frac{p^T_c}{p^S_c} + (1 - p^T_c) \ln\frac{1 - p^T_c}{1 - p^S_c} \right],
              \qquad p = \mathrm{sigmoid}(z / \tau)

    Arguments, result and what it raises: as :func:`kd_divergence`.
    """
    _check(student, teacher, dim)
    z_student, z_teacher = student / tau, teacher / tau
    p = z_teacher.sigmoid()
    # ln sigmoid(z) and ln (1 - sigmoid(z)) = ln sigmoid(-z), each stable where it is far below 0.
    positive = p * (F.logsigmoid(z_teacher) - F.logsigmoid(z_student))
    negative = (1 - p) * (F.logsigmoid(-z_teacher) - F.logsigmoid(-z_student))
    return (positive + negative).sum(dim) * tau**2


def decoupled_kd(
    student: Tensor, teacher: Tensor, target: Tensor, tau: float = 1.0, dim: int = 1
) -> tuple[Tensor, Tensor]:
    r"""The two parts of :func:`kd_divergence`: of the target class against the rest, and among the rest.

    .. math::
        \mathrm{TCKD} = \tau^2 \, \mathrm{KL}\big((p^T_y, 1 - p^T_y) \,\|\, (p^S_y, 1 - p^S_y)\big), \qquad
        \mathrm{NCKD} = \tau^2 \, \mathrm{KL}(\hat p^T \,\|\, \hat p^S)

    with :math:`\hat p` the softmax over the classes other than y. Then
    :math:`\mathrm{KD} = \mathrm{TCKD} + (1 - p^T_y) \, \mathrm{NCKD}`.

    Args:
        student: logits with the classes along ``dim``. teacher: the same shape. tau: temperature.
        target: y, int64, the shape of ``student`` without ``dim``.
    Returns:
        Two tensors of the shape of ``target``, in nats times :math:`\tau^2`.
    Raises:
        ValueError: where the shapes differ, or there is one class only.
    Source: Zhao et al., Decoupled Knowledge Distillation (DKD), CVPR 2022, eq. 5-7. Deviation: none.
    """
    _check(student, teacher, dim)
    if student.shape[dim] < 2:
        raise ValueError('decoupled distillation: needs at least two classes, one is left beside the target')
    mask = F.one_hot(target, student.shape[dim]).movedim(-1, dim).bool()

    def parts(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = z / tau
        # The target's share in both forms, each stable where it is next to nothing; then the rest among themselves.
        whole = z.logsumexp(dim)
        rest = z.masked_fill(mask, -torch.inf).logsumexp(dim)
        return (z * mask).sum(dim) - whole, rest - whole, torch.where(mask, 0, z - rest.unsqueeze(dim))

    s_target, s_rest, s_among = parts(student)
    t_target, t_rest, t_among = parts(teacher)
    of_target = t_target.exp() * (t_target - s_target) + t_rest.exp() * (t_rest - s_rest)
    # At the target itself both are 0, and so is what is added there.
    among = (t_among.exp() * (t_among - s_among)).sum(dim)
    return of_target * tau**2, among * tau**2


def _check(student: Tensor, teacher: Tensor, dim: int) -> None:
    check_rank('knowledge distillation on logits', student, dim + 1, f'classes along dimension {dim}')
    if student.shape != teacher.shape:
        raise ValueError(
            f'knowledge distillation on logits: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} '
            'differ in shape; both nets must score the same classes at the same positions'
        )
