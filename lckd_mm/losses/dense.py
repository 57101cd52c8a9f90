"""Distillation of dense detectors, weighted by what the teacher is sure of."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import arguments
from ..functional import focal_cross_entropy, giou, kd_divergence
from ..functional.shapes import same_shape
from ..hosts import check_box_layers, check_boxes, check_same_boxes, decoded_boxes, has_sigmoids, positives
from ..registry import MODELS
from .base import Loss
from .logits import split_anchors

#: Beside a sum of weights, which is 0 for a batch without images.
_EPS = 1e-9


class DenseLoss(Loss):
    """Base class of losses that read the class scores of mmdet's dense heads.

    The teacher's confidence at an anchor is the largest probability that it gives a class: the largest sigmoid, or one
    minus the background's softmax.
    """

    takes = ('map',)

    def __init__(self):
        super().__init__()
        # Scores per anchor, None: all channels are those of one anchor; and whether each is a sigmoid.
        self._classes: int | None = None
        self._sigmoids = True
        # Those of them that the term keeps, if it matches classes by name.
        self._kept: int | None = None

    def read_teacher_head(self, head: nn.Module | None) -> None:
        """Read how the teacher's head scores classes."""
        self._classes = getattr(head, 'cls_out_channels', None)
        if self._classes is None:
            found = 'its taps lie in no head' if head is None else f'{type(head).__name__} is none'
            raise ValueError(
                f'{type(self).__name__}: needs the class scores of one of the dense heads of mmdet, and {found}; on '
                'other nets compare features by FitNetsLoss, or class scores by KDLoss'
            )
        self._sigmoids = has_sigmoids(head)

    def of_anchors(self, z: Tensor) -> Tensor:
        """Class scores (B, A*C, H, W) as (B, C, A, H, W)."""
        return split_anchors(type(self).__name__, z, self._kept or self._classes or z.shape[1])

    def probabilities(self, z: Tensor) -> Tensor:
        """Of each class but the background, (B, C, A, H, W); without gradient."""
        z = self.of_anchors(z.detach())
        return z.sigmoid() if self._sigmoids else z.softmax(1)[:, :-1]

    def confidence(self, z: Tensor) -> Tensor:
        """The teacher's confidence, (B, A, H, W)."""
        p = self.probabilities(z)
        return p.amax(1) if self._sigmoids else p.sum(1)


@MODELS.register_module()
class ScoreWeightedLoss(DenseLoss):
    r"""Squared distance between features, weighted by the teacher's confidence, summed over the levels.

    .. math:: L = \sum_i \frac{\sum_{b, hw} w_{ibhw} \sum_c (s_i - t_i)^2_{bchw}}{C_i \sum_{b, hw} w_{ibhw} + 10^{-9}},
              \qquad w = \max_{a, k} p^T_{ak}

    with the probabilities p of the teacher's classes k at the anchors a of the position: sigmoids, or, for a head with
    a softmax, one minus that of the background.

    Args of its term: ``given=dict(scores=TAPS)``, the teacher's class scores, one tap for each feature.
    Shapes:
        student, teacher: maps (B, C_i, H_i, W_i) of equal shapes, such as the levels of a pyramid; a connector, in the
        source an :class:`~lckd_mm.connectors.MLP`, maps the student's.
        scores: (B, A*K, H_i, W_i), before the sigmoid or softmax.
    Returns:
        A scalar, in squared units.
    Raises:
        ValueError: shapes that differ; features and scores of other sizes; scores that are not a dense detector's.
    Example:
        loss_swl2=dict(
            loss=dict(type='lckd_mm.ScoreWeightedLoss'),
            on=['p3', 'p4', 'p5', 'p6', 'p7'],
            given=dict(scores='logits'),
            connector=dict(type='lckd_mm.MLP'),
        )
    Source: the score-weighted loss ``loss_sl2`` of Ultralytics' ``nn/distill_model.py``, read in a public copy of it;
        no paper. Deviation: they take the mean of two branches' scores, and multiply the loss by the batch size. Each
        rank divides by its own sums.
    """

    def tensor_weights(self, count: int) -> list[float]:
        return [1.0] * count

    def forward(self, student: Tensor, teacher: Tensor, scores: Tensor) -> Tensor:
        same_shape('ScoreWeightedLoss', student, teacher)
        weights = self.confidence(scores).amax(1, keepdim=True)
        if weights.shape[2:] != student.shape[2:]:
            raise ValueError(
                f'ScoreWeightedLoss: features {tuple(student.shape)} and scores {tuple(scores.shape)} of other '
                'positions; tap features and scores of the same levels, in the same order'
            )
        distance = (student - teacher).square() * weights
        return distance.sum() / (student.shape[1] * weights.sum() + _EPS)


@MODELS.register_module()
class BCKDLoss(DenseLoss):
    r"""Cross entropy of each class with the teacher's probability, weighted by how far the nets differ.

    .. math:: L = \frac{\sum_{b, n} \sum_c |p^T - p^S|^\beta \, \mathrm{BCE}(p^S, p^T)}
              {\max\bigl(1, \sum_{b, n} \max_c p^T\bigr)}, \qquad p = \mathrm{sigmoid}(z)

    over all anchors n of all levels (:func:`~lckd_mm.functional.focal_cross_entropy`). For dense heads with a sigmoid
    per class. It is the class loss of CrossKD, too, whose term has ``reuse``.

    Args:
        beta: exponent of the difference, at least 1.
    Shapes:
        student, teacher: lists of maps (B, A*C, H, W) of equal shapes, one per level.
    Returns:
        A scalar, in nats; the authors' weight is 1, of both methods.
    Raises:
        ValueError: shapes that differ, a head with a softmax, beta below 1.
    Example:
        loss_bckd=dict(loss=dict(type='lckd_mm.BCKDLoss'), on='logits')
    Source: Yang et al., Bridging Cross-task Protocol Inconsistency (BCKD), ICCV 2023; formula, exponent and weight are
        those of the authors' ``kd_loss.py`` and GFL config, and of CrossKD's. Deviation: both divide by the number of
        positives of the student's own assignment, and leave out anchors that it ignores. The sum of the teacher's
        confidences, a count of what it takes for objects, needs no labels. Each rank divides by its own.
    """

    joint = True
    of_classes = True
    #: What classes='by name' asks for.
    activation = 'sigmoid'

    def __init__(self, beta: float = 1.0):
        super().__init__()
        self.beta = arguments.number('BCKDLoss', 'beta', beta, at_least=1)

    def read_head(self, head: nn.Module | None) -> None:
        """Refuse heads without a sigmoid per class."""
        if head is not None and not has_sigmoids(head):
            raise ValueError(
                f'BCKDLoss: {type(head).__name__} scores classes by a softmax, and this needs a sigmoid of each; use '
                'KDLoss'
            )

    def read_teacher_head(self, head: nn.Module | None) -> None:
        """Refuse those of the teacher."""
        super().read_teacher_head(head)
        self.read_head(head)

    def keep_classes(self, student: list[int], teacher: list[int], count: int) -> None:
        self._kept = len(student)

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        total, sure = 0.0, 0.0
        for s, t in zip(student, teacher):
            total = total + focal_cross_entropy(s, t, self.beta).sum()
            sure = sure + self.confidence(t).sum()
        # As the authors' number of positives, at least 1: it is next to 0 where the teacher sees no object.
        return total / sure.clamp(min=1)


class _Heads:
    """Both nets' heads. No module, and shared by copies of a loss, which reads their constants alone."""

    def __init__(self):
        self.student: Any = None
        self.teacher: Any = None

    def __deepcopy__(self, memo: dict) -> '_Heads':
        return self


class BoxLoss(DenseLoss):
    """Base class of losses of the boxes that a dense head predicts."""

    joint = True

    def __init__(self):
        super().__init__()
        self._heads = _Heads()

    def read_head(self, head: nn.Module | None) -> None:
        """Keep the student's head, which decodes the boxes."""
        check_boxes(head, type(self).__name__)
        self._heads.student = head

    def read_teacher_head(self, head: nn.Module | None) -> None:
        """Keep the teacher's; ValueError if its boxes belong to other anchors."""
        super().read_teacher_head(head)
        check_boxes(head, type(self).__name__)
        check_same_boxes(self._heads.student, head, type(self).__name__)
        self._heads.teacher = head

    def keep_classes(self, student: list[int], teacher: list[int], count: int) -> None:
        """Refuse to match classes, since it is boxes that are compared."""
        raise ValueError(
            f'{type(self).__name__}: compares boxes, and classes= is for class scores; remove it (BCKDBoxLoss with '
            "weigh='confidence' reads the teacher's scores alone, so that the nets' classes may differ)"
        )

    def bind_student(self, layers: list[nn.Module | None], who: str) -> None:
        """Check that the student's taps are those of its boxes."""
        check_box_layers(self._heads.student, layers, f"{who}: {type(self).__name__}: student's taps")

    def bind(self, layers: list[nn.Module | None], who: str) -> None:
        """Check that the teacher's are."""
        check_box_layers(self._heads.teacher, layers, f"{who}: {type(self).__name__}: teacher's taps")

    @staticmethod
    def in_order(values: list[Tensor]) -> Tensor:
        """Values of anchors, (B, A, H, W) per level, in the order of the boxes, (B, N)."""
        return torch.cat([x.movedim(1, -1).flatten(1) for x in values], 1)

    def check_scores(self, boxes: Tensor, scores: Tensor) -> None:
        """ValueError unless there is a value of the class scores, (B, N), for each box."""
        if scores.shape != boxes.shape:
            raise ValueError(
                f'{type(self).__name__}: {boxes.shape[1]} boxes and {scores.shape[1]} anchors with class scores; tap '
                'the class scores of the same levels'
            )


@MODELS.register_module()
class LDLoss(BoxLoss):
    r"""KL divergence between the softened distributions of the boxes' edges, weighted by class scores.

    .. math:: L = \frac{\sum_{b, n} w_{bn} \, D_{bn}}{\sum_{b, n} w_{bn}}, \quad w = \max_c p^T_c, \quad \text{or} \quad
              L = \frac{1}{m + 1} \sum_{(b, n) \in P} w_{bn} \, D_{bn}, \quad w = \max_c p^S_c,

    .. math:: D = \frac14 \sum_{e=1}^{4} \tau^2 \, \mathrm{KL}(q^T_e \,\|\, q^S_e), \qquad
              q = \mathrm{softmax}(x / \tau)

    The first form, ``weigh='confidence'``, takes all positions n of all levels and needs no labels (CrossKD, whose term
    has ``reuse``). The second, ``weigh='assigned'``, is LD's: P are the positions to which the student's head assigns
    an object, and w is the student's own confidence. Weights have no gradient. For heads that predict a distribution
    over m + 1 distances for each edge, such as GFLHead; tap what its ``scales`` give, ``bbox_head.scales.0`` and so on.

    Args:
        tau: temperature.
        weigh: 'confidence' or 'assigned'.
    Args of its term: ``given=dict(scores=TAPS)``, the class scores of these levels.
    Shapes:
        student, teacher: lists of maps (B, 4 (m + 1), H, W) of equal shapes, one per level.
        scores, student_scores: (B, C, H, W), before the sigmoid.
        data_samples: mmdet's, with the ground truth, for 'assigned'.
    Returns:
        A scalar, in nats times tau squared, for 'assigned' over m + 1. The weight is 0.25 for 'assigned', at tau = 10,
        and CrossKD's for 'confidence' 3, at tau = 1.
    Raises:
        ValueError: a temperature not above 0; an unknown ``weigh``; heads without distributions, or with other
            distances or positions.
    Example:
        loss_ld=dict(
            loss=dict(type='lckd_mm.LDLoss', tau=1.0),
            on=['boxes3', 'boxes4', 'boxes5'],  # boxes3='bbox_head.scales.0', …
            given=dict(scores='logits'),
            weight=3.0,
        )
    Source: Zheng et al., Localization Distillation (LD), CVPR 2022: mmdet's ``ld_head.py`` and ``kd_loss.py``, equal to
        'assigned' but for 1e-7 in a divisor; Wang et al., CrossKD, CVPR 2024: the authors' ``crosskd_gfl.py`` for
        'confidence'. Deviation: LD's valuable localisation region, a second term on positions near an object, needs an
        assigner of the authors' own and is left out, as in mmdet. Each rank has its own positions: 'confidence' divides
        by its own sum; 'assigned' is a sum that grows with the batch, and DDP averages it over ranks.
    """

    def __init__(self, tau: float = 10.0, weigh: str = 'confidence'):
        super().__init__()
        self.tau = arguments.number('LDLoss', 'tau', tau, above=0)
        self.weigh = arguments.choice('LDLoss', 'weigh', weigh, ('confidence', 'assigned'))

    def read_head(self, head: nn.Module | None) -> None:
        """Refuse heads without distributions."""
        if head is not None and not hasattr(head, 'reg_max'):
            raise ValueError(
                f'LDLoss: {type(head).__name__} predicts no distributions of its boxes, as GFLHead does; compare the '
                'boxes themselves by BCKDBoxLoss'
            )
        super().read_head(head)

    def read_teacher_head(self, head: nn.Module | None) -> None:
        """Refuse those of the teacher, and other distances than the student's."""
        super().read_teacher_head(head)
        theirs = getattr(head, 'reg_max', None)
        if theirs != self._heads.student.reg_max:
            raise ValueError(
                f"LDLoss: the student's distributions have reg_max={self._heads.student.reg_max}, the teacher's "
                f'{theirs}; give the student that of the teacher, or compare the boxes themselves by BCKDBoxLoss'
            )

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        scores: list[Tensor],
        student_scores: list[Tensor] | None = None,
        data_samples: list | None = None,
    ) -> Tensor:
        distance = self.in_order([self._distance(s, t) for s, t in zip(student, teacher, strict=True)])
        if self.weigh == 'confidence':
            weights = self.in_order([self.confidence(z) for z in scores])
            self.check_scores(distance, weights)
            return (distance * weights).sum() / (weights.sum() + _EPS)
        ours = self.in_order([z.detach().sigmoid().amax(1, keepdim=True) for z in student_scores])
        self.check_scores(distance, ours)
        assigned = positives(self._heads.student, student, data_samples)
        return (distance * ours * assigned).sum() / (self._heads.student.reg_max + 1)

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        same_shape('LDLoss', student, teacher)
        q_student, q_teacher = (x.unflatten(1, (4, -1)).transpose(1, 2) for x in (student, teacher))
        return kd_divergence(q_student, q_teacher, self.tau).mean(1, keepdim=True)


@MODELS.register_module()
class BCKDBoxLoss(BoxLoss):
    r"""One minus the generalised IoU of both nets' boxes, weighted by class scores.

    .. math:: L = \frac{\sum_{b, n} w_{bn} \, (1 - \mathrm{GIoU}(d^S_{bn}, d^T_{bn}))}
              {\max\bigl(1, \sum_{b, n} \max_c p^T_c\bigr)}

    over all anchors n of all levels, with the decoded boxes d (:func:`~lckd_mm.hosts.decoded_boxes`). w is, for
    ``weigh='difference'``, :math:`\max_c |p^T_c - p^S_c|`: boxes count where the nets' class scores differ (BCKD). For
    'confidence' it is :math:`\max_c p^T_c` (CrossKD, whose term has ``reuse``). Weights have no gradient.

    Args:
        weigh: 'difference' or 'confidence'.
    Args of its term: ``given=dict(scores=TAPS)``, the class scores of these levels, of both nets for 'difference'.
    Shapes:
        student, teacher: lists of the maps that the heads decode, one per level; the taps that give them are named if
        others are tapped: ``bbox_head.retina_reg#*``, or ``bbox_head.scales.0`` and so on.
        scores, student_scores: (B, A*C, H, W), before the sigmoid or softmax.
    Returns:
        A scalar, without unit; at most about 2 for 'confidence'. BCKD's weight is 4; CrossKD's is 2 for GFL, 1 for
        RetinaNet.
    Raises:
        ValueError: heads whose boxes cannot be decoded, or belong to other anchors; an unknown ``weigh``.
    Example:
        loss_boxes=dict(
            loss=dict(type='lckd_mm.BCKDBoxLoss'),
            on='boxes',  # boxes='bbox_head.retina_reg#*'
            given=dict(scores='logits'),
            weight=4.0,
        )
    Source: Yang et al., Bridging Cross-task Protocol Inconsistency (BCKD), ICCV 2023: the authors' ``ld_head.py`` and
        GFL config; Wang et al., CrossKD, CVPR 2024: the authors' ``crosskd_gfl.py``, ``crosskd_retinanet.py`` and
        configs. Deviation: BCKD, and CrossKD on RetinaNet, divide by the number of positives of the student's own
        assignment, and leave out anchors that it ignores; CrossKD on GFL divides as here, but leaves these out, too.
        Each rank divides by its own sum.
    """

    def __init__(self, weigh: str = 'difference'):
        super().__init__()
        self.weigh = arguments.choice('BCKDBoxLoss', 'weigh', weigh, ('difference', 'confidence'))
        # Class by class, so that the names of the nets' classes have to agree.
        self.of_classes = weigh == 'difference'

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        scores: list[Tensor],
        student_scores: list[Tensor] | None = None,
    ) -> Tensor:
        distance = 1 - giou(decoded_boxes(self._heads.student, student), decoded_boxes(self._heads.teacher, teacher))
        sure = self.in_order([self.confidence(z) for z in scores])
        weights = sure
        if self.weigh == 'difference':
            weights = self.in_order([self._gap(s, t) for s, t in zip(student_scores, scores, strict=True)])
        self.check_scores(distance, weights)
        return (distance * weights).sum() / sure.sum().clamp(min=1)

    def _gap(self, student: Tensor, teacher: Tensor) -> Tensor:
        advice = "both nets must score the same classes; weigh='confidence' reads the teacher's scores alone"
        same_shape('BCKDBoxLoss: class scores', student, teacher, advice)
        return (self.probabilities(teacher) - self.probabilities(student)).abs().amax(1)
