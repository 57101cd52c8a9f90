"""Distillation of the relations between samples."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import arguments
from ..functional.shapes import check_rank, same_shape
from ..registry import MODELS
from .base import Loss


@MODELS.register_module()
class RKDLoss(Loss):
    r"""Huber loss between the nets' pairwise distances and angles of the samples in a batch.

    .. math:: L = w_d \, \mathrm{mean}\, l_1(d^S, d^T) + w_a \, \mathrm{mean}\, l_1(\psi^S, \psi^T)

    with the smooth L1 loss l_1 and, for the flattened features x of each net,

    .. math:: d_{ij} = \lVert x_i - x_j \rVert_2 / \mu, \qquad \mu = \text{the mean of all distances above 0}

    .. math:: \psi_{jik} = \langle e_{ji}, e_{jk} \rangle, \qquad e_{ji} = (x_i - x_j) / \lVert x_i - x_j \rVert_2

    The nets' features may differ in shape: only relations are compared.

    Args:
        distance_weight: :math:`w_d`. angle_weight: :math:`w_a`; 0 leaves out the angles, whose cost grows as B^3.
    Shapes:
        student, teacher: (B, ...), shapes may differ; with B below 2 (below 3 for angles) the loss is 0.
    Returns:
        A scalar, without unit. The default weights are the authors', for features of unit length; here they are
        compared as they are.
    Raises:
        ValueError: a negative weight, both weights 0.
    Source: Park et al., Relational Knowledge Distillation (RKD), CVPR 2019, eq. 5-9. Deviation: equal samples have the
        distance 0 and are left out of the mean, where the authors' code gives them 1e-6 and counts them. Each rank
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


def pairwise_distances(x: Tensor) -> Tensor:
    """``(B, B)``; zeros if all samples are equal. The gradient at a distance of 0 is 0."""
    check_rank('RKDLoss', x, 2, '(B, ...)')
    x = x.flatten(1)
    # The cheaper matrix-product mode loses all digits of distances that are small relative to the features.
    distances = torch.cdist(x, x, compute_mode='donot_use_mm_for_euclid_dist')
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1)


def pairwise_angles(x: Tensor) -> Tensor:
    """``(B, B, B)``, the vertex first.

    It is 0, with zero gradient, where two of the three are closer than 1e-5 times the largest distance.
    """
    check_rank('RKDLoss', x, 2, '(B, ...)')
    if not len(x):
        return x.new_zeros(0, 0, 0)
    x = x.flatten(1)
    edges = x[None] - x[:, None]
    squares = edges.square().sum(2, keepdim=True)
    apart = squares > 1e-10 * squares.max()
    edges = torch.where(apart, edges / torch.where(apart, squares, 1).sqrt(), 0)
    return edges @ edges.mT
