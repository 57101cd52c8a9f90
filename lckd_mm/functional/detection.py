"""Comparisons of feature maps that know where the objects are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import check_map, mean


def box_masks(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    r"""Weights of the cells of a map inside and outside of boxes, so that each object and the background weigh alike.

    .. math:: f_{ij} = \max_{r \ni (i, j)} \frac{1}{H_r W_r}, \qquad
              b_{ij} = [f_{ij} = 0] \Bigm/ \sum_{kl} [f_{kl} = 0]

    A box covers the cells from the floor of its first to the ceiling of its second corner, both included, and H_r and
    W_r count these. Of boxes that overlap the smallest has the cell.

    Args:
        boxes: ``(K, 4)``, x1, y1, x2, y2 in cells of the map; K may be 0. size: (H, W) of the map.
    Returns:
        foreground and background, ``(H, W)`` each; the background sums to 1, or is 0 where boxes cover the map.
    Source: Yang et al., Focal and Global Knowledge Distillation for Detectors (FGD), CVPR 2022, section 3.1; the cells
        of a box are those of the authors' code. Deviation: rows by y and columns by x; the code takes them the other
        way round, which shows on maps that are not square.
    """
    rows, columns = (torch.arange(n, device=boxes.device) for n in size)
    (x1, y1), (x2, y2) = boxes[:, :2].floor().unbind(1), boxes[:, 2:].ceil().unbind(1)
    in_rows = (rows >= y1[:, None]) & (rows <= y2[:, None])
    in_columns = (columns >= x1[:, None]) & (columns <= x2[:, None])
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    weights = inside / ((y2 - y1 + 1) * (x2 - x1 + 1))[:, None, None]
    # A row of zeros, so that there is a maximum where there is no box.
    foreground = torch.cat([weights, weights.new_zeros(1, *size)]).amax(0)
    background = (foreground == 0).to(foreground.dtype)
    return foreground, background / background.sum().clamp(min=1)


def absolute_attention(x: Tensor, temperature: float = 0.5) -> tuple[Tensor, Tensor]:
    r"""Attention over positions and over channels, by the mean absolute value.

    .. math:: A^S = HW \; \mathrm{softmax}\Bigl(\tfrac1C \sum_c |x_c| \Bigm/ T\Bigr), \qquad
              A^C = C \; \mathrm{softmax}\Bigl(\tfrac1{HW} \sum_{ij} |x_{ij}| \Bigm/ T\Bigr)

    Args:
        x: ``(B, C, H, W)``. temperature: T, in units of x.
    Returns:
        ``(B, H, W)``, of mean 1 over the positions, and ``(B, C)``, of mean 1 over the channels.
    Source: FGD, section 3.1. Deviation: none.
    """
    check_map('absolute attention', x)
    size = x.abs()
    spatial = (size.mean(1).flatten(1) / temperature).softmax(1) * x.shape[2:].numel()
    channel = (size.mean((2, 3)) / temperature).softmax(1) * x.shape[1]
    return spatial.unflatten(1, x.shape[2:]), channel


def focal_distances(
    student: Tensor, teacher: Tensor, foreground: Tensor, background: Tensor, temperature: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Squared distances on the objects and on the background, and the absolute distance of the attentions.

    .. math:: \sum_{cij} m_{ij} \, A^{S,t}_{ij} A^{C,t}_c \, (s - t)^2_{cij}, \qquad
              \sum_{ij} |A^{S,s} - A^{S,t}|_{ij} + \sum_c |A^{C,s} - A^{C,t}|_c

    each the mean over the batch; the first one with m of the foreground, then of the background (:func:`box_masks`),
    both with the teacher's attentions (:func:`absolute_attention`).

    Args:
        student: ``(B, C, H, W)``, connected. teacher: the same shape. foreground, background: ``(B, H, W)``.
        temperature: of the attentions.
    Returns:
        Three scalars: of the foreground, of the background, of the attentions.
    Raises:
        ValueError: where the shapes differ.
    Source: FGD, section 3.1. Deviation: none.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f'focal distances: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape; a '
            "connector maps the student's channels (connector=dict(type='lckd_mm.ConvBN'))"
        )
    ours, theirs = absolute_attention(student, temperature), absolute_attention(teacher, temperature)
    spatial, channel = theirs
    distance = ((student - teacher).square() * channel[:, :, None, None]).sum(1) * spatial
    gaps = sum((a - b).abs().flatten(1).sum(1) for a, b in zip(ours, theirs))
    return (
        mean((distance * foreground).sum((1, 2))),
        mean((distance * background).sum((1, 2))),
        mean(gaps),
    )


def attended_context(x: Tensor, scores: Tensor) -> Tensor:
    r"""What a map holds at the positions with high scores.

    .. math:: \sum_j \mathrm{softmax}(k)_j \, x_j

    Args:
        x: ``(B, C, H, W)``. scores: k, ``(B, H, W)``.
    Returns:
        ``(B, C)``, in the units of x.
    Source: Cao et al., GCNet, 2019, as FGD takes it (section 3.2). Deviation: none.
    """
    check_map('attended context', x)
    return torch.einsum('bcn,bn->bc', x.flatten(2), F.softmax(scores.flatten(1), 1))
