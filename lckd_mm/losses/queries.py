"""Losses of queries: what a teacher's decoder makes of both nets' memory, and both nets' own predictions, matched."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import arguments
from ..contexts import own_generator
from ..functional.boxes import giou
from ..functional.logits import binary_kd_divergence, kd_divergence
from ..functional.points import dice_distance, point_values, uncertain_points
from ..hosts import has_sigmoids
from ..registry import MODELS
from .base import Loss


@MODELS.register_module()
class QueryLoss(Loss):
    r"""What the teacher's decoder and head make of the student's memory, against what they make of its own.

    .. math:: L = \sum_l \lambda_c \frac{1}{B Q} \sum_i D(z'_{li}, z_{li})
              + \frac{\sum_i w_{li} \bigl[ \lambda_b \tfrac14 \lVert b'_{li} - b_{li} \rVert_1
              + \lambda_g (1 - \mathrm{GIoU}(b'_{li}, b_{li})) \bigr]}{\sum_i w_{li}}

    over the layers l of the decoder and its B Q queries i, which are the teacher's in both. z are class scores and b
    boxes; those with a prime are of the student's memory. D is the divergence of the classes' probabilities: one
    sigmoid a class, or a softmax (DETR), as the teacher's head has it. w is the largest of the teacher's probabilities
    over the classes, without "no object"; it has no gradient.

    Args:
        scores, boxes, giou: the weights :math:`\lambda_c, \lambda_b, \lambda_g`.
    Args of its term: ``queries=True``, and a tap of what the encoder gives.
    Shapes:
        student, teacher: lists of class scores (L, B, Q, C), before the sigmoid or softmax, and of boxes (L, B, Q, 4):
        centre, width and height, relative to the image.
    Returns:
        A scalar; scores in nats, boxes without unit.
    Raises:
        ValueError: a weight below 0, or all of them 0.
    Example:
        loss_queries=dict(loss=dict(type='lckd_mm.QueryLoss'), on='memory', queries=True)  # memory='encoder'
    Source: Wang et al., CrossKD, CVPR 2024: ``crosskd_deformable_detr2giou.py`` and its config in the authors' branch
        for Deformable DETR, whose weights these are (1, 1, and 1 for the GIoU, which mmdet's average over four
        coordinates makes a quarter). Each rank divides by its own sum, as theirs does. Deviation: the binary cross
        entropy without the teacher's entropy, which has no gradient, so that equal nets have a loss of 0.
    """

    joint = True
    of_queries = 'boxes'

    def __init__(self, scores: float = 1.0, boxes: float = 1.0, giou: float = 0.25):
        super().__init__()
        self.weights = _weights('QueryLoss', scores=scores, boxes=boxes, giou=giou)
        self.sigmoids = True

    def read_teacher_head(self, head: nn.Module | None) -> None:
        """Whether the teacher's head has a sigmoid for each class."""
        if head is not None:
            self.sigmoids = has_sigmoids(head)

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        (ours, our_boxes), (theirs, their_boxes) = student, teacher
        divergence = binary_kd_divergence if self.sigmoids else kd_divergence
        p = theirs.sigmoid() if self.sigmoids else theirs.softmax(-1)[..., :-1]
        w = p.amax(-1).flatten(1)
        distance = self.weights['boxes'] * (our_boxes - their_boxes).abs().mean(-1)
        distance = distance + self.weights['giou'] * (1 - _giou(our_boxes, their_boxes))
        scores = divergence(ours.flatten(0, 2), theirs.flatten(0, 2)).view(w.shape)
        rows = max(w.shape[1], 1)
        boxes = (w * distance.flatten(1)).sum(1) / w.sum(1).clamp(min=1e-6)
        return (self.weights['scores'] * scores.sum(1) / rows + boxes).sum()


@MODELS.register_module()
class MaskQueryLoss(Loss):
    r"""What a Mask2Former's decoder and head make of the student's memory, against what they make of their own.

    .. math:: L = \sum_l \lambda_c \frac{1}{B Q} \sum_i \mathrm{KL}(p_{li} \,\|\, p'_{li})
              + \frac{\sum_i w_{li} \bigl[ \lambda_m \frac{1}{P} \sum_k \mathrm{KL}(m_{lik} \,\|\, m'_{lik})
              + \lambda_d D(m'_{li}, m_{li}) \bigr]}{\sum_i w_{li}}, \qquad w_{li} = 1 - p_{li\emptyset}

    over the predictions l, one after each layer and in Mask2Former one before the first, and their B Q queries i, which
    are the teacher's in both. p is the softmax over the classes and "no object", which is the last; m are the sigmoids
    of the masks at P points k; those with a prime are of the student's memory and mask features. D is the
    :func:`~lckd_mm.functional.dice_distance`. w is the teacher's probability that the query is an object; it has no
    gradient. The points are drawn anew for each mask and batch, most of them where the student's mask is least sure
    (:func:`~lckd_mm.functional.uncertain_points`).

    Args:
        scores, masks, dice: the weights :math:`\lambda_c, \lambda_m, \lambda_d`; Mask2Former's own loss has these.
        points: P; by default the ``num_points`` of the teacher's head, 12544 in the published ones. How they are drawn,
            ``oversample_ratio`` and ``importance_sample_ratio``, is always the head's.
    Args of its term: ``queries=True``, and the taps of what the pixel decoder gives.
    Shapes:
        student, teacher: lists of class scores (L, B, Q, C), before the softmax, and L tensors of masks (B, Q, H, W),
        before the sigmoid.
    Returns:
        A scalar; scores and masks in nats, dice without unit.
    Raises:
        ValueError: a weight below 0, or all of them 0.
    Example:
        loss_queries=dict(
            loss=dict(type='lckd_mm.MaskQueryLoss'),
            on=['mask', 'memory0', 'memory1', 'memory2'],  # memory1='decode_head.pixel_decoder[1][1]'
            queries=True,
        )
    Source: a form of ours: :class:`QueryLoss` with the parts, points and weights of the loss of Cheng et al.,
        Mask2Former, CVPR 2022. Deviation from theirs: the targets are the teacher's probabilities, less their entropy,
        so that equal nets have a loss of 0; "no object" weighs as much as any class.
    """

    joint = True
    of_queries = 'masks'

    def __init__(self, scores: float = 2.0, masks: float = 5.0, dice: float = 5.0, points: int | None = None):
        super().__init__()
        self.weights = _weights('MaskQueryLoss', scores=scores, masks=masks, dice=dice)
        self.points = points if points is None else arguments.integer('MaskQueryLoss', 'points', points, at_least=1)
        self.read_teacher_head(None)
        # Saved in the checkpoint, so that a resumed run draws new points.
        self.register_buffer('draws', torch.zeros((), dtype=torch.int64))

    def read_teacher_head(self, head: nn.Module | None) -> None:
        """How the teacher's own loss draws its points; a MaskFormer, which draws none, has the published numbers."""
        published = dict(num_points=12544, oversample_ratio=3.0, importance_sample_ratio=0.75)
        count, *self.drawing = (getattr(head, name, number) for name, number in published.items())
        self.count = self.points or count

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        (ours, *our_masks), (theirs, *their_masks) = student, teacher
        sure = 1 - theirs.softmax(-1)[..., -1].flatten(1)
        scores = kd_divergence(ours.flatten(0, 2), theirs.flatten(0, 2)).view(sure.shape)
        generator = own_generator(self.draws, ours.device)
        masks = []
        for w, x, y in zip(sure, our_masks, their_masks, strict=True):
            distances = self._distances(x.flatten(0, 1), y.flatten(0, 1), generator)
            masks.append((w * distances).sum() / w.sum().clamp(min=1e-6))
        return self.weights['scores'] * scores.sum() / max(sure.shape[1], 1) + sum(masks)

    def _distances(self, student: Tensor, teacher: Tensor, generator: torch.Generator) -> Tensor:
        """Of masks (N, H, W), at points: ``(N,)``."""
        points = uncertain_points(student, self.count, *self.drawing, generator)
        ours, theirs = (point_values(masks, points) for masks in (student, teacher))
        divergence, dice = binary_kd_divergence(ours, theirs), dice_distance(ours.sigmoid(), theirs.sigmoid())
        return self.weights['masks'] * divergence / self.count + self.weights['dice'] * dice


@MODELS.register_module()
class MatchedQueryLoss(Loss):
    r"""Class scores and boxes of both nets' own queries, compared in pairs that the Hungarian algorithm finds.

    .. math:: L = \sum_l \frac{1}{\max(1, \sum_i w_{mi})} \min_{\sigma_l} \sum_i \lambda_c D(z'_{l\sigma_l(i)}, z_{mi})
              + w_{mi} \bigl[ \lambda_b \lVert b'_{l\sigma_l(i)} - b_{mi} \rVert_1
              + \lambda_g (1 - \mathrm{GIoU}(b'_{l\sigma_l(i)}, b_{mi})) \bigr]

    The first sum is over the L' layers l of the student's decoder. The others are over the teacher's predictions i
    with the highest confidence, in all images, of its layer :math:`m = \lceil l L / L' \rceil` of L: if both
    decoders have as many layers, m = l. The assignment :math:`\sigma_l` pairs each i with a different prediction of
    the student for the same image; the one of least cost is taken, without gradient. z are class scores and b
    boxes; a prime marks the student's. D is the divergence of the classes' probabilities, by a sigmoid for each
    class or a softmax (DETR). w is the largest of the teacher's probabilities over the classes, without "no
    object"; it has no gradient.

    For a student with another decoder than the teacher's, or an encoder with other levels; otherwise see
    :class:`QueryLoss`, which needs no matching. Denoising queries are left out.

    Args:
        scores, boxes, giou: the weights :math:`\lambda_c, \lambda_b, \lambda_g`.
        queries: how many of the teacher's predictions of an image are compared at most. Matching all 900 of a DINO with
            900 takes 0.2 s for each layer and image, 300 of them with 900 a fifteenth of it.
    Args of its term: ``given=dict(boxes=TAP)``, the boxes of the same head.
    Shapes:
        student, teacher: class scores (L', B, Q', C) and (L, B, Q, C), before the sigmoid or softmax.
        student_boxes, boxes: (L', B, Q', 4) and (L, B, Q, 4): centre, width and height, relative to the image.
    Returns:
        A scalar; scores in nats, boxes without unit, for each object that the teacher sees.
    Raises:
        ValueError: a weight below 0, or all of them 0; ``queries`` below 1; other shapes; numbers of classes that
            differ; only one net scores by sigmoids; the student is a DDQ, which trains dense queries beside its own.
    Example:
        loss_matched=dict(
            loss=dict(type='lckd_mm.MatchedQueryLoss'),
            on='scores',  # scores='bbox_head[0]'
            given=dict(boxes='boxes'),  # boxes='bbox_head[1]'
        )
    Source: Chang et al., DETRDistill, ICCV 2023, checked against ``distill_deformable_detr_head.py`` and the student's
        config of the authors' repository, whose weights these are (1, 5 and 2). Deviations: there each prediction has
        the weight 1, and the divisor is their number; here a box weighs by w, and the divisor is the sum of w, as that
        of DETR's own loss is the number of objects. The binary cross entropy is without the teacher's entropy, which
        has no gradient, so that equal nets have a loss of 0. The softmax and decoders of other depths are ours.
    """

    of_classes = True
    matches_queries = True

    def __init__(self, scores: float = 1.0, boxes: float = 5.0, giou: float = 2.0, queries: int = 300):
        super().__init__()
        self.weights = _weights('MatchedQueryLoss', scores=scores, boxes=boxes, giou=giou)
        self.queries = arguments.integer('MatchedQueryLoss', 'queries', queries, at_least=1)
        self.of_classes = scores > 0
        self.sigmoids: dict[str, bool] = {}

    def read_head(self, head: nn.Module | None) -> None:
        """Whether the student's head has a sigmoid for each class."""
        if hasattr(head, 'aux_cls_branches'):
            raise ValueError(
                'MatchedQueryLoss: a DDQ trains dense queries beside its own, which are not told apart here; as a '
                "student take loss=dict(type='lckd_mm.QueryLoss') and queries=True"
            )
        if head is not None:
            self.sigmoids['student'] = has_sigmoids(head)

    def read_teacher_head(self, head: nn.Module | None) -> None:
        """The same of the teacher's."""
        if head is not None:
            self.sigmoids['teacher'] = has_sigmoids(head)
        if self.of_classes and len(set(self.sigmoids.values())) > 1:
            kinds = {role: 'a sigmoid for each class' if own else 'a softmax' for role, own in self.sigmoids.items()}
            raise ValueError(
                f"MatchedQueryLoss: the student's head has {kinds['student']} and the teacher's {kinds['teacher']}, so "
                'that their class scores cannot be compared; write scores=0 in the loss, which compares the boxes alone'
            )

    def forward(self, student: Tensor, teacher: Tensor, boxes: Tensor, student_boxes: Tensor) -> Tensor:
        for role, z, b in (('student', student, student_boxes), ('teacher', teacher, boxes)):
            if z.dim() != 4 or b.shape != (*z.shape[:3], 4):
                raise ValueError(
                    f"MatchedQueryLoss: expected class scores (L, B, Q, C) and boxes (L, B, Q, 4) of mmdet's detectors "
                    f'with queries, and the {role} gives {tuple(z.shape)} and {tuple(b.shape)}; write '
                    "taps=dict(scores='bbox_head[0]', boxes='bbox_head[1]') with such a net, or compare the backbones, "
                    "as in taps='backbone'"
                )
        if self.of_classes and student.shape[3] != teacher.shape[3]:
            raise ValueError(
                f'MatchedQueryLoss: the student has {student.shape[3]} class scores and the teacher '
                f"{teacher.shape[3]}; write classes='by name' in the term, or scores=0 in the loss, which compares the "
                'boxes alone'
            )
        own, other = len(student), len(teacher)
        layers = [-(-(i + 1) * other // own) - 1 for i in range(own)]
        return sum(map(self._layer, student, student_boxes, teacher[layers], boxes[layers]))

    @property
    def _sigmoids(self) -> bool:
        return self.sigmoids.get('teacher', True)

    def _layer(self, ours: Tensor, our_boxes: Tensor, theirs: Tensor, their_boxes: Tensor) -> Tensor:
        """Of one layer: scores (B, Q, C) and boxes (B, Q, 4)."""
        w = (theirs.sigmoid() if self._sigmoids else theirs.softmax(-1)[..., :-1]).amax(-1)
        w, rows = w.topk(min(self.queries, ours.shape[1], theirs.shape[1]), 1)
        theirs, their_boxes = _rows(theirs, rows), _rows(their_boxes, rows)
        matched = self._matched(ours.detach(), our_boxes.detach(), theirs, their_boxes, w)
        ours, our_boxes = _rows(ours, matched), _rows(our_boxes, matched)
        value = w * self._distances(our_boxes, their_boxes)
        if self.of_classes:
            divergence = binary_kd_divergence if self._sigmoids else kd_divergence
            value = value + self.weights['scores'] * divergence(ours.flatten(0, 1), theirs.flatten(0, 1)).view(w.shape)
        return value.sum() / w.sum().clamp(min=1)

    def _matched(self, ours: Tensor, our_boxes: Tensor, theirs: Tensor, their_boxes: Tensor, w: Tensor) -> Tensor:
        """Which of the student's predictions belong to these of the teacher: ``(B, N)``."""
        from scipy.optimize import linear_sum_assignment

        costs = w[:, :, None] * self._distances(our_boxes[:, None], their_boxes[:, :, None])
        if self.of_classes:
            # Less the teacher's entropy, which is the same for all matches.
            if self._sigmoids:
                divergence = F.softplus(ours).sum(-1)[:, None] - theirs.sigmoid() @ ours.mT
            else:
                divergence = -theirs.softmax(-1) @ ours.log_softmax(-1).mT
            costs = costs + self.weights['scores'] * divergence
        # What is nan is found, and named, where the loss is.
        costs = costs.nan_to_num().cpu().numpy()
        found = [torch.as_tensor(linear_sum_assignment(cost)[1], device=ours.device) for cost in costs]
        return torch.stack(found)

    def _distances(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of pairs of boxes (..., 4)."""
        lengths = (student - teacher).abs().sum(-1)
        return self.weights['boxes'] * lengths + self.weights['giou'] * (1 - _giou(student, teacher))


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """These rows (B, N) of each image's (B, Q, C)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def _giou(student: Tensor, teacher: Tensor) -> Tensor:
    """GIoU of boxes given by centre, width and height, relative to the image."""
    # It has no unit, but counts areas below 1e-6 as that.
    return giou(_corners(1e3 * student), _corners(1e3 * teacher))


def _corners(boxes: Tensor) -> Tensor:
    """x1, y1, x2, y2 of boxes given by centre, width and height."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def _weights(who: str, **weights: float) -> dict[str, float]:
    """The weights of a loss's parts; ValueError if one is below 0, or all are 0."""
    for name, weight in weights.items():
        arguments.number(who, name, weight, at_least=0)
    if not any(weights.values()):
        *names, last = weights
        raise ValueError(f'{who}: {", ".join(names)} and {last} are 0, so that nothing is compared; give one a weight')
    return weights
