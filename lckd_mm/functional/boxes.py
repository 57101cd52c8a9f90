"""How far boxes are apart."""

import torch
from torch import Tensor


def giou(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Generalised intersection over union of pairs of boxes.

    .. math:: \frac{|a \cap b|}{|a \cup b|} - \frac{|h| - |a \cup b|}{|h|}

    with h the smallest box that holds both.

    Args:
        student, teacher: ``(..., 4)``, x1, y1, x2, y2.
    Returns:
        ``(...)``, above -1, at most 1; independent of the unit of the boxes. Areas below 1e-6 count as 1e-6.
    Source: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019, algorithm 1; the smallest area is that
        of mmdet's ``bbox_overlaps``. Deviation: none.
    """

    def area(corner: Tensor, opposite: Tensor) -> Tensor:
        return (opposite - corner).clamp(min=0).prod(-1)

    (a, c), (b, d) = ((x[..., :2], x[..., 2:]) for x in (student, teacher))
    shared = area(torch.maximum(a, b), torch.minimum(c, d))
    union = (area(a, c) + area(b, d) - shared).clamp(min=1e-6)
    hull = area(torch.minimum(a, b), torch.maximum(c, d)).clamp(min=1e-6)
    return shared / union - (hull - union) / hull
