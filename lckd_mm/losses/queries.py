"""Losses of queries: what a teacher's decoder makes of both nets' memory, by its own queries."""

import torch
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
        # GIoU has no unit, but counts areas below 1e-6 as that.
        distance = distance + self.weights['giou'] * (1 - giou(_corners(1e3 * our_boxes), _corners(1e3 * their_boxes)))
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
