"""Comparisons of detectors' feature maps that use the object positions."""

import torch
from torch import Tensor

from .shapes import check_map, mean, same_shape


def box_masks(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    r"""Weights of a map's cells inside and outside of boxes, so that each object and the background weigh the same.

    .. math:: f_{ij} = \max_{r \ni (i, j)} \frac{1}{H_r W_r}, \qquad
              b_{ij} = [f_{ij} = 0] \Bigm/ \sum_{kl} [f_{kl} = 0]

    A box covers the cells from the floor of its first corner to the ceiling of its second, both inclusive; H_r and
    W_r count these. Where boxes overlap, the smallest one counts.

    Args:
        boxes: ``(K, 4)``, x1, y1, x2, y2 in cells of the map; K may be 0. size: (H, W) of the map.
    Returns:
        foreground and background, ``(H, W)`` each; the background sums to 1, or is 0 if boxes cover the whole map.
    Source: Yang et al., Focal and Global Knowledge Distillation for Detectors (FGD), CVPR 2022, section 3.1; the cells
        of a box are those of the authors' code. Deviation: y selects rows and x columns; the code swaps them, which
        matters on maps that are not square.
    """
    rows, columns = (torch.arange(n, device=boxes.device) for n in size)
    (x1, y1), (x2, y2) = boxes[:, :2].floor().unbind(1), boxes[:, 2:].ceil().unbind(1)
    in_rows = (rows >= y1[:, None]) & (rows <= y2[:, None])
    in_columns = (columns >= x1[:, None]) & (columns <= x2[:, None])
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    weights = inside / ((y2 - y1 + 1) * (x2 - x1 + 1))[:, None, None]
    # Zeros are appended so that the maximum exists without boxes.
    foreground = torch.cat([weights, weights.new_zeros(1, *size)]).amax(0)
    background = (foreground == 0).to(foreground.dtype)
    return foreground, background / background.sum().clamp(min=1)


def absolute_attention(x: Tensor, temperature: float = 0.5) -> tuple[Tensor, Tensor]:
    r"""Attention over positions and over channels, from mean absolute values.

    .. math:: A^S = HW \; \mathrm{softmax}\Bigl(\tfrac1C \sum_c |x_c| \Bigm/ T\Bigr), \qquad
              A^C = C \; \mathrm{softmax}\Bigl(\tfrac1{HW} \sum_{ij} |x_{ij}| \Bigm/ T\Bigr)

    Args:
        x: ``(B, C, H, W)``. temperature: T, in units of x.
    Returns:
        ``(B, H, W)``, with mean 1 over positions, and ``(B, C)``, with mean 1 over channels.
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
    r"""Squared distances on objects and on the background, and the absolute distance between the attentions.

    .. math:: \sum_{cij} m_{ij} \, A^{S,t}_{ij} A^{C,t}_c \, (s - t)^2_{cij}, \qquad
              \sum_{ij} |A^{S,s} - A^{S,t}|_{ij} + \sum_c |A^{C,s} - A^{C,t}|_c

    each averaged over the batch. The first is computed with m the foreground and with m the background
    (:func:`box_masks`), both with the teacher's attentions (:func:`absolute_attention`).

    Args:
        student: ``(B, C, H, W)``, connected. teacher: the same shape. foreground, background: ``(B, H, W)``.
        temperature: temperature of the attentions.
    Returns:
        Three scalars: foreground, background and attention distance.
    Raises:
        ValueError: shapes that differ.
    Source: FGD, section 3.1. Deviation: none.
    """
    same_shape('focal distances', student, teacher)
    ours, theirs = absolute_attention(student, temperature), absolute_attention(teacher, temperature)
    spatial, channel = theirs
    distance = ((student - teacher).square() * channel[:, :, None, None]).sum(1) * spatial
    gaps = sum((a - b).abs().flatten(1).sum(1) for a, b in zip(ours, theirs))
    return (
        mean((distance * foreground).sum((1, 2))),
        mean((distance * background).sum((1, 2))),
        mean(gaps),
    )
