"""Distillation of class scores."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import arguments
from ..functional import binary_kd_divergence, decoupled_kd, kd_divergence, standardised_scores
from ..functional.logits import SAME_CLASSES
from ..functional.shapes import channels_first, same_shape
from ..hosts import class_targets, has_sigmoids, resized_labels
from ..registry import MODELS
from .base import Loss

_ACTIVATIONS = ('softmax', 'sigmoid')


class ScoreLoss(Loss):
    """Base class of losses of class scores; their term may keep some of the classes.

    Args:
        ignore_index: label of positions to ignore in segmentation.
    """

    of_classes = True

    def __init__(self, ignore_index: int):
        super().__init__()
        self.ignore_index = arguments.integer(type(self).__name__, 'ignore_index', ignore_index, at_least=None)
        # The place of each of the student's classes in the scores, -1 for one that is left out; None: all are there.
        self._places: Tensor | None = None

    def keep_classes(self, student: list[int], teacher: list[int], count: int) -> None:
        self._places = torch.full((count,), -1)
        self._places[student] = torch.arange(len(student))

    def valid(self, z: Tensor, data_samples: list | None) -> Tensor | None:
        """A mask of the positions with a label to be compared; None for all, as where there is no map of labels."""
        if z.dim() != 4 or not data_samples or 'gt_sem_seg' not in data_samples[0]:
            return None
        return resized_labels(z, data_samples) != self.ignore_index

    def targets(self, z: Tensor, data_samples: list | None, who: str) -> tuple[Tensor, Tensor]:
        """The labels as places in the scores, 0 where there is none, and a mask of where there is one."""
        target = class_targets(z, data_samples, who)
        valid = target != self.ignore_index if z.dim() == 4 else torch.ones_like(target, dtype=torch.bool)
        if self._places is not None:
            self._places = self._places.to(target.device)
            target = self._places[torch.where(valid, target, 0)]
            valid = valid & (target >= 0)
        return torch.where(valid, target, 0), valid

    def labelled_scores(
        self, student: Tensor, teacher: Tensor, data_samples: list | None, who: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both nets' scores, the labels, and the mask of :meth:`targets`."""
        target, valid = self.targets(student, data_samples, who)
        return *_masked(valid, student, teacher), target, valid


def _masked(valid: Tensor, *scores: Tensor) -> list[Tensor]:
    # Mask the scores, not the divergence: infinity at an ignored position would give nan in backward.
    return [torch.where(valid.unsqueeze(1), z, 0) for z in scores]


def masked_mean(value: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid positions; 0 if there are none."""
    return (value * valid).sum() / valid.sum().clamp(min=1)


def split_anchors(who: str, z: Tensor, classes: int) -> Tensor:
    """(N, A*C, H, W) -> (N, C, A, H, W); in the heads' layout the classes vary fastest."""
    if z.shape[1] % classes:
        raise ValueError(f'{who}: {z.shape[1]} channels are not a multiple of num_classes={classes}')
    return z.unflatten(1, (-1, classes)).transpose(1, 2)


@MODELS.register_module()
class KDLoss(ScoreLoss):
    r"""KL divergence between softened class scores, averaged over samples and positions.

    Uses :func:`~lckd_mm.functional.kd_divergence` for softmax heads and
    :func:`~lckd_mm.functional.binary_kd_divergence` for sigmoid heads. In segmentation, positions with the label
    ``ignore_index`` are left out; the label map is resized to the logits by nearest neighbour.

    Args:
        tau: temperature.
        activation: 'softmax', 'sigmoid', or None for that of the tapped head.
        num_classes: number of scores per anchor, including background if the head has one; None for that of the tapped
            head. Needed if the channels hold several anchors.
        ignore_index: label of positions to ignore in segmentation.
        standardise: take the z-scores of both nets' scores over the classes first
            (:func:`~lckd_mm.functional.standardised_scores`); for softmax heads.
        confidence: leave out the samples or positions at which the teacher's largest probability (at temperature 1) is
            below it; for images without labels, where a teacher that is not sure teaches noise.
    Shapes:
        student, teacher: lists of vectors (N, C), tokens (N, L, C), maps (N, C, H, W), or maps (N, A*C, H, W) of a
        detection head with A anchors per position, read as (N, H, W, A, C); pyramid levels are averaged over all
        positions together.
    Returns:
        A scalar, in nats times tau squared.
    Raises:
        ValueError: shapes that differ, channels that are not a multiple of ``num_classes``, temperature not above 0,
            ``standardise`` on a sigmoid head, a ``confidence`` outside of [0, 1].
    Example:
        loss_kd=dict(loss=dict(type='lckd_mm.KDLoss', tau=4.0), on='logits')
    Source: Hinton, Vinyals, Dean 2015. ``standardise``: Sun et al., Logit Standardization, CVPR 2024; checked against
        ``mdistiller/distillers/KD.py`` of the authors' repository, whose runs on CIFAR-100 have temperature 2 or 3 and,
        all but one, weight 9. Deviation: the mean over positions and the binary form are extensions. Each rank
        averages over its own positions, so if ranks ignore different numbers of positions, the remaining positions
        get different weights.
    """

    joint = True
    takes = ('vector', 'tokens', 'map')

    def __init__(
        self,
        tau: float = 4.0,
        activation: str | None = None,
        num_classes: int | None = None,
        ignore_index: int = 255,
        standardise: bool = False,
        confidence: float = 0.0,
    ):
        super().__init__(ignore_index)
        arguments.number('KDLoss', 'tau', tau, above=0)
        self.confidence = arguments.number('KDLoss', 'confidence', confidence, at_least=0, at_most=1)
        self.standardise = arguments.boolean('KDLoss', 'standardise', standardise)
        if activation is not None:
            arguments.choice('KDLoss', 'activation', activation, _ACTIVATIONS)
        if num_classes is not None:
            arguments.integer('KDLoss', 'num_classes', num_classes)
        self.tau, self.activation = tau, activation
        # Not `num_classes`: mmdet's NumClassCheckHook takes any module with that for a head without a background class.
        self.scores = num_classes
        self._check_softmax()

    def read_head(self, head: nn.Module | None) -> None:
        """Fill in arguments that are None from the host's head that owns the student's tap."""
        if self.activation is None:
            self.activation = 'sigmoid' if has_sigmoids(head) else 'softmax'
        if self.scores is None:
            self.scores = getattr(head, 'cls_out_channels', None)
        self._check_softmax()

    def _check_softmax(self) -> None:
        if self.standardise and self.activation == 'sigmoid':
            raise ValueError(
                'KDLoss: standardise=True compares scores up to shift and scale, which a softmax allows, and this head '
                'scores each class by its own sigmoid; leave out standardise'
            )

    def keep_classes(self, student: list[int], teacher: list[int], count: int) -> None:
        super().keep_classes(student, teacher, count)
        self.scores = len(student)

    def forward(self, student: list[Tensor], teacher: list[Tensor], data_samples: list | None = None) -> Tensor:
        divergence = binary_kd_divergence if self.activation == 'sigmoid' else kd_divergence
        total, count = 0.0, 0
        for scores in zip(student, teacher, strict=True):
            z_student, z_teacher = (self._split_anchors(channels_first(z)) for z in scores)
            valid = self._sure(z_teacher, self.valid(z_student, data_samples))
            if valid is not None:
                z_student, z_teacher = _masked(valid, z_student, z_teacher)
            if self.standardise:
                z_student, z_teacher = standardised_scores(z_student), standardised_scores(z_teacher)
            value = divergence(z_student, z_teacher, self.tau)
            total = total + value.sum()
            count = count + (value.numel() if valid is None else valid.sum())
        return total / (max(count, 1) if isinstance(count, int) else count.clamp(min=1))

    def _sure(self, z: Tensor, valid: Tensor | None) -> Tensor | None:
        """The valid samples or positions at which the teacher is confident; None for all."""
        if not self.confidence:
            return valid
        p = z.sigmoid() if self.activation == 'sigmoid' else z.softmax(1)
        sure = p.amax(1) >= self.confidence
        return sure if valid is None else sure & valid

    def _split_anchors(self, z: Tensor) -> Tensor:
        of_anchors = z.dim() == 4 and self.scores is not None and z.shape[1] != self.scores
        return split_anchors('KDLoss', z, self.scores) if of_anchors else z


def refuse_without_target(head: nn.Module | None, who: str) -> None:
    """Raise ValueError for heads that do not score by a softmax over classes with one target class."""
    name = type(head).__name__
    if has_sigmoids(head) and not hasattr(head, 'cls_out_channels'):
        raise ValueError(f'{who}: {name} has a sigmoid per class, so there is no target class; use KDLoss')
    if hasattr(head, 'use_sigmoid_cls') or hasattr(head, 'cls_out_channels'):
        raise ValueError(
            f'{who}: the positions of the detection head {name} have labels only inside its own assignment, so '
            'that the target class is not known; use KDLoss'
        )


def refuse_without_softmax(head: nn.Module | None, who: str) -> None:
    """Raise ValueError for heads whose scores at a position are not those of one softmax over the classes."""
    name = type(head).__name__
    if has_sigmoids(head):
        raise ValueError(
            f'{who}: compares the probabilities of a softmax, and {name} has a sigmoid per class; use KDLoss'
        )
    if hasattr(head, 'cls_out_channels'):
        raise ValueError(
            f'{who}: compares one softmax per position, and the detection head {name} may score several anchors there, '
            'nearly all of them background; use KDLoss'
        )


@MODELS.register_module()
class DKDLoss(ScoreLoss):
    r"""Decoupled KL divergence between softened class scores, averaged over samples and positions.

    .. math:: L = \alpha\,\mathrm{TCKD} + \beta\,\mathrm{NCKD}

    with the parts of :func:`~lckd_mm.functional.decoupled_kd`; ``alpha = 1`` and ``beta`` equal to the teacher's
    :math:`1 - p^T_y` would be :class:`KDLoss`. For classification and segmentation. Detection heads are refused: their
    positions have labels only inside the head's own assignment, so the target class is not known.

    Args:
        tau: temperature. alpha: weight of the target class against the rest. beta: weight among the other classes.
        ignore_index: label of positions to ignore in segmentation. standardise: as in :class:`KDLoss`.
    Shapes:
        student, teacher: (N, C), or (N, C, H, W) with segmentation labels, which are resized by nearest neighbour.
    Returns:
        A scalar, in nats times tau squared.
    Raises:
        ValueError: shapes that differ, temperature not above 0, negative weights, a sigmoid or detection head, samples
            without a single class label.
    Example:
        loss_dkd=dict(loss=dict(type='lckd_mm.DKDLoss', tau=4.0, beta=8.0), on='logits')
    Source: Zhao et al., Decoupled Knowledge Distillation (DKD), CVPR 2022, eq. 7. Deviation: none for (N, C); the mean
        over positions is an extension. The authors' beta is 8 for five of their eleven pairs on CIFAR-100, 2 or 6 for
        the others; on ImageNet tau is 1 and beta 0.5 or 2. They multiply the weight by epoch / 20, counted from 1, for
        20 epochs: LossWeightHook(schedule='linear', by='epoch', start=0.05, end=19).
    """

    takes = ('vector', 'map')

    def __init__(
        self,
        tau: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        ignore_index: int = 255,
        standardise: bool = False,
    ):
        super().__init__(ignore_index)
        arguments.number('DKDLoss', 'tau', tau, above=0)
        arguments.number('DKDLoss', 'alpha', alpha, at_least=0)
        arguments.number('DKDLoss', 'beta', beta, at_least=0)
        self.tau, self.alpha, self.beta = tau, alpha, beta
        self.standardise = arguments.boolean('DKDLoss', 'standardise', standardise)

    def read_head(self, head: nn.Module | None) -> None:
        """Refuse heads whose scores have no softmax over classes with one label."""
        refuse_without_target(head, 'DKDLoss')

    def forward(self, student: Tensor, teacher: Tensor, data_samples: list | None = None) -> Tensor:
        student, teacher, target, valid = self.labelled_scores(student, teacher, data_samples, 'DKDLoss')
        if self.standardise:
            student, teacher = standardised_scores(student), standardised_scores(teacher)
        of_target, among = decoupled_kd(student, teacher, target, self.tau)
        return masked_mean(self.alpha * of_target + self.beta * among, valid)


@MODELS.register_module()
class WSLDLoss(ScoreLoss):
    r"""KL divergence between softened class scores, weighted for each sample by how far the student is behind.

    .. math:: L = \mathrm{mean}_i \; w_i \, \tau^2 \, \mathrm{KL}(p^T_i \,\|\, p^S_i), \qquad
              w_i = 1 - \exp\Bigl(-\frac{H(y_i, q^S_i)}{H(y_i, q^T_i) + 10^{-7}}\Bigr)

    where p are the probabilities at temperature :math:`\tau`, q those at 1, and H(y, q) is the cross-entropy with the
    label. The weight has no gradient; it is near 1 where the teacher is surer of the label than the student, and small
    where the student has learnt the sample.

    Args:
        tau: temperature. ignore_index: label of positions to ignore in segmentation.
    Shapes:
        student, teacher: (N, C), or (N, C, H, W) with segmentation labels, which are resized by nearest neighbour.
    Returns:
        A scalar, in nats times tau squared; the authors' weight is 2.5 on ImageNet.
    Raises:
        ValueError: shapes that differ, a temperature not above 0, a sigmoid or detection head, samples without a single
            class label.
    Example:
        loss_wsld=dict(loss=dict(type='lckd_mm.WSLDLoss'), on='logits', weight=2.5)
    Source: Zhou et al., Rethinking Soft Labels for Knowledge Distillation (WSL), ICLR 2021; checked against
        ``knowledge_distiller.py`` of the authors' repository. Deviation: the KL divergence instead of the cross-entropy
        (they differ by the teacher's entropy, and not in gradient); the mean over positions is an extension.
    """

    takes = ('vector', 'map')

    def __init__(self, tau: float = 2.0, ignore_index: int = 255):
        super().__init__(ignore_index)
        self.tau = arguments.number('WSLDLoss', 'tau', tau, above=0)

    def read_head(self, head: nn.Module | None) -> None:
        """Refuse heads whose scores have no softmax over classes with one label."""
        refuse_without_target(head, 'WSLDLoss')

    def forward(self, student: Tensor, teacher: Tensor, data_samples: list | None = None) -> Tensor:
        same_shape('WSLDLoss', student, teacher, SAME_CLASSES)
        student, teacher, target, valid = self.labelled_scores(student, teacher, data_samples, 'WSLDLoss')
        with torch.no_grad():
            ours, theirs = (F.cross_entropy(z, target, reduction='none') for z in (student, teacher))
            weight = 1 - (-ours / (theirs + 1e-7)).exp()
        return masked_mean(weight * kd_divergence(student, teacher, self.tau), valid)
