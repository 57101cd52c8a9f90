"""Losses of queries: what a teacher's decoder makes of both nets' memory, by its own queries."""

import torch
from torch import Tensor, nn

from .. import arguments
from ..functional.boxes import giou
from ..functional.logits import binary_kd_divergence, kd_divergence
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
    of_queries = True

    def __init__(self, scores: float = 1.0, boxes: float = 1.0, giou: float = 0.25):
        super().__init__()
        self.weights = dict(scores=scores, boxes=boxes, giou=giou)
        for name, weight in self.weights.items():
            arguments.number('QueryLoss', name, weight, at_least=0)
        if not any(self.weights.values()):
            raise ValueError('QueryLoss: scores, boxes and giou are 0, so that nothing is compared; give one a weight')
        self.sigmoids = True

    def read_teacher_head(self, head: nn.Module | None) -> None:
        """Whether the teacher's head has a sigmoid for each class."""
        if head is not None:
            self.sigmoids = has_sigmoids(head) or getattr(getattr(head, 'loss_cls', None), 'use_sigmoid', False)

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


def _corners(boxes: Tensor) -> Tensor:
    """x1, y1, x2, y2 of boxes given by centre, width and height."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)
