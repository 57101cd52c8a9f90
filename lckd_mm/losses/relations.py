"""Distillation of the relations between samples, and between classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import arguments
from ..functional.features import above_rounding
from ..functional.logits import SAME_CLASSES
from ..functional.shapes import channels_first, check_rank, mean_square, same_shape
from ..registry import MODELS
from .base import Loss
from .logits import ScoreLoss, refuse_without_softmax

_SAME_BATCH = 'both nets must see the same batch'


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
    Example:
        loss_rkd=dict(loss=dict(type='lckd_mm.RKDLoss'), on='embedding')
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
    same_shape('RKDLoss: relations of', student, teacher, _SAME_BATCH)
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


@MODELS.register_module()
class SPLoss(Loss):
    r"""Mean squared difference of the nets' similarities between the samples of a batch, averaged over layers.

    .. math:: L = \frac1n \sum_i \frac{1}{B^2} \lVert \tilde G(s_i) - \tilde G(t_i) \rVert_F^2, \qquad
              G(x) = X X^\top

    where X has one row for each sample, its flattened feature, and :math:`\tilde G` is G with rows of length 1. The
    nets' features may differ in shape.

    Shapes:
        student, teacher: (B, ...), shapes may differ; with B below 2 the loss is 0.
    Returns:
        A scalar, without unit; a common weight is 3000, for the last map alone.
    Raises:
        ValueError: features that are no batch, or batches of different sizes.
    Example:
        loss_sp=dict(loss=dict(type='lckd_mm.SPLoss'), on='stage4', weight=3000.0)
    Source: Tung and Mori, Similarity-Preserving Knowledge Distillation (SP), ICCV 2019; checked against
        ``distiller_zoo/SP.py`` of HobbitLong/RepDistiller, which the author verified, and ``distillers/SP.py`` of
        mdistiller, whose ``cfg.py`` has the weight. Deviation: the mean over layers in place of the sum. Each rank
        compares only its own samples.
    """

    bounded = True  # the rows have unit length

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return mean_square('SPLoss: similarities of', *(_similarities(x) for x in (student, teacher)), _SAME_BATCH)


def _similarities(x: Tensor) -> Tensor:
    check_rank('SPLoss', x, 2, '(B, ...)')
    x = x.flatten(1)
    return F.normalize(x @ x.mT, dim=1)


@MODELS.register_module()
class DISTLoss(ScoreLoss):
    r"""One minus the correlation of the nets' class probabilities, over the classes and over the samples.

    .. math:: L = \tau^2 \Bigl[ \beta \bigl(1 - \mathrm{mean}_i\, r(p^S_{i\cdot}, p^T_{i\cdot})\bigr)
              + \gamma \bigl(1 - \mathrm{mean}_c\, r(p^S_{\cdot c}, p^T_{\cdot c})\bigr) \Bigr], \qquad
              r(x, y) = \frac{\langle x - \bar x, y - \bar y \rangle}
              {\lVert x - \bar x \rVert \lVert y - \bar y \rVert + 10^{-8}}

    with :math:`p = \mathrm{softmax}(z / \tau)`. Row i is a sample, in segmentation a position; those with the label
    ``ignore_index`` are left out. Correlations ignore shift and scale: the student need not become as sure as a much
    stronger teacher.

    Args:
        beta: weight of the relations between classes. gamma: weight of those between samples, within a class.
        tau: temperature. ignore_index: label of positions to ignore in segmentation.
    Shapes:
        student, teacher: (N, C), (N, L, C) or (N, C, H, W), of equal shapes. One row alone has no relation within a
        class: that part is then :math:`\gamma`, without gradient.
    Returns:
        A scalar, without unit, times tau squared; 0 to :math:`2 \tau^2 (\beta + \gamma)`. A common weight is 2 for
        ResNet34 to ResNet18 on ImageNet, and 1 for segmentation.
    Raises:
        ValueError: shapes that differ; a temperature not above 0; negative weights, or both 0; a sigmoid or detection
            head.
    Example:
        loss_dist=dict(loss=dict(type='lckd_mm.DISTLoss'), on='logits', weight=2.0)
    Source: Huang et al., Knowledge Distillation from A Stronger Teacher (DIST), NeurIPS 2022; checked against
        ``segmentation/losses/dist_kd.py`` and ``train_kd.py`` of hunto/DIST_KD, where temperature and weights are 1,
        and mmrazor's ``dist_loss.py``, which has the temperature, and its config. Deviation: the authors count ignored
        positions, too. Equal probabilities, with which a classifier of zeros begins, correlate with nothing and get no
        gradient; the authors' formula gives one of 1e3 to 1e5 there. Each rank correlates its own samples.
    """

    takes = ('vector', 'tokens', 'map')
    bounded = True

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0, ignore_index: int = 255):
        super().__init__(ignore_index)
        arguments.number('DISTLoss', 'tau', tau, above=0)
        arguments.number('DISTLoss', 'beta', beta, at_least=0)
        arguments.number('DISTLoss', 'gamma', gamma, at_least=0)
        if max(beta, gamma) == 0:
            raise ValueError('DISTLoss: one of beta and gamma must be above 0, got 0 and 0')
        self.beta, self.gamma, self.tau = beta, gamma, tau

    def read_head(self, head: nn.Module | None) -> None:
        """Refuse heads without a softmax over the classes."""
        refuse_without_softmax(head, 'DISTLoss')

    def forward(self, student: Tensor, teacher: Tensor, data_samples: list | None = None) -> Tensor:
        same_shape('DISTLoss', student, teacher, SAME_CLASSES)
        valid = self.valid(student, data_samples)
        ours, theirs = (self._probabilities(z, valid) for z in (student, teacher))
        if ours.shape[1] < 2:
            raise ValueError('DISTLoss: correlates the scores of two classes or more, and there is one')
        if not len(ours):
            return ours.sum()
        among, within = (1 - _correlations(ours, theirs, axis).mean() for axis in (1, 0))
        return self.tau**2 * (self.beta * among + self.gamma * within)

    def _probabilities(self, z: Tensor, valid: Tensor | None) -> Tensor:
        rows = channels_first(z).movedim(1, -1)
        rows = rows.reshape(-1, rows.shape[-1]) if valid is None else rows[valid]
        return (rows / self.tau).softmax(1)


def _correlations(x: Tensor, y: Tensor, axis: int) -> Tensor:
    (x, of_x), (y, of_y) = (_centred(z, axis) for z in (x, y))
    return (x * y).sum(axis) / (of_x * of_y + 1e-8)


def _centred(z: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Minus the mean along an axis, and the norm; without gradient where all values are equal but for rounding."""
    centred = z - z.mean(axis, keepdim=True)
    squares = centred.square().sum(axis, keepdim=True)
    varies = above_rounding(squares / z.shape[axis], z, axis)
    return torch.where(varies, centred, 0), torch.where(varies, squares, 1).sqrt().squeeze(axis)
