"""Distillation of the relations between samples."""

import torch.nn.functional as F
from torch import Tensor

from .. import arguments
from ..functional import pairwise_angles, pairwise_distances
from ..functional.shapes import same_shape
from ..registry import MODELS
from .base import Loss


@MODELS.register_module()
class RKDLoss(Loss):
    r"""Huber loss between the nets' pairwise distances and angles of the samples in a batch.

    .. math:: L = w_d \, \mathrm{mean}\, l_1(d^S, d^T) + w_a \, \mathrm{mean}\, l_1(\psi^S, \psi^T)

    with :func:`~lckd_mm.functional.pairwise_distances`, :func:`~lckd_mm.functional.pairwise_angles`, and the smooth L1
    loss l_1. The nets' features may differ in shape: only relations are compared.

    Args:
        distance_weight: :math:`w_d`. angle_weight: :math:`w_a`; 0 leaves out the angles, whose cost grows as B^3.
    Shapes:
        student, teacher: (B, ...), shapes may differ; with B below 2 (below 3 for angles) the loss is 0.
    Returns:
        A scalar, without unit.
    Raises:
        ValueError: a negative weight, both weights 0.
    Source: Park et al., Relational Knowledge Distillation (RKD), CVPR 2019, eq. 5-9. Deviation: none. Each rank
        compares only its own samples.
    """

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0):
        super().__init__()
        arguments.number('RKDLoss', 'distance_weight', distance_weight, at_least=0)
        arguments.number('RKDLoss', 'angle_weight', angle_weight, at_least=0)
        if max(distance_weight, angle_weight) == 0:
            raise ValueError('RKDLoss: one of distance_weight and angle_weight must be above 0, got 0 and 0')
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        loss = student.new_zeros(())
        if self.distance_weight:
            gap = _huber(pairwise_distances(student), pairwise_distances(teacher))
            loss = loss + self.distance_weight * gap
        if self.angle_weight:
            loss = loss + self.angle_weight * _huber(pairwise_angles(student), pairwise_angles(teacher))
        return loss


def _huber(student: Tensor, teacher: Tensor) -> Tensor:
    same_shape('RKDLoss: relations of', student, teacher, 'both nets must see the same batch')
    return F.smooth_l1_loss(student, teacher.to(student.dtype)) if len(student) else (student - teacher).sum()
