"""Scores of the prediction for one image, from 0 to 1; the report sorts its pictures by them."""

import torch
from torch import Tensor
from torchvision.ops import box_iou


def image_iou(predicted: Tensor, truth: Tensor, ignore_index: int = 255) -> float:
    """Mean intersection over union of the classes that occur in an image's truth or prediction.

    Args:
        predicted, truth: ``(H, W)``, class indices. ignore_index: label of truth pixels that do not count.
    Returns:
        0 to 1; nan if every pixel is ignored.
    Deviation: the hosts' mIoU sums pixels over the whole set before dividing, so it differs from the mean of this score
        over images.
    """
    valid = truth != ignore_index
    predicted, truth = predicted[valid].long(), truth[valid].long()
    if not len(truth):
        return float('nan')
    ious = []
    for label in torch.cat([predicted, truth]).unique():
        p, t = predicted == label, truth == label
        ious.append((p & t).sum() / (p | t).sum())
    return torch.stack(ious).mean().item()


def box_f1(
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    true_boxes: Tensor,
    true_labels: Tensor,
    ignored: Tensor | None = None,
    iou: float = 0.5,
    score: float = 0.3,
) -> float:
    r"""F1 of an image's boxes: ``2 TP / (2 TP + FP + FN)``.

    Boxes with a score of at least ``score`` are matched in the order of their scores, each with the free true box of
    its class with the largest IoU, if that is at least ``iou``. Unmatched boxes whose IoU with a box in ``ignored`` is
    at least ``iou`` do not count.

    Args:
        boxes, true_boxes, ignored: ``(N, 4)``, left, top, right, bottom, in pixels.
        labels, true_labels, scores: ``(N,)``.
    Returns:
        0 to 1; 1 for an image without true boxes and without detections.
    """
    kept = scores >= score
    boxes, labels, scores = boxes[kept], labels[kept], scores[kept]
    overlaps = _overlaps(boxes, true_boxes) * (labels[:, None] == true_labels[None])
    free = torch.ones(len(true_boxes), dtype=torch.bool)
    hits = misses = 0
    for index in scores.argsort(descending=True, stable=True).tolist():
        best = (overlaps[index] * free).max(0) if len(true_boxes) else None
        if best is not None and best.values >= iou:
            free[best.indices] = False
            hits += 1
        elif ignored is None or not len(ignored) or _overlaps(boxes[index : index + 1], ignored).max() < iou:
            misses += 1
    wrong = misses + int(free.sum())
    return 2 * hits / (2 * hits + wrong) if hits or wrong else 1.0


def _overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes, ``(N, 4)`` and ``(M, 4)`` to ``(N, M)``."""
    return box_iou(a.float().reshape(-1, 4), b.float().reshape(-1, 4)).nan_to_num(0)
