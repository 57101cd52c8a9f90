"""Masks at single points: where to look, what they are there, and how far they overlap."""

import torch
import torch.nn.functional as F
from torch import Tensor


def point_values(masks: Tensor, points: Tensor) -> Tensor:
    """Masks at points, bilinear between the centres of the pixels; beyond the border pixels they fall to 0.

    Args:
        masks: ``(N, H, W)``. points: ``(N, P, 2)``, x and y from 0 to 1, borders of the mask.
    Returns:
        ``(N, P)``.
    Source: ``mmcv.ops.point_sample``. Deviation: none.
    """
    return F.grid_sample(masks[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


@torch.no_grad()
def uncertain_points(
    logits: Tensor, count: int, oversample: float, importance: float, generator: torch.Generator
) -> Tensor:
    """Points of each mask, most of them where it is least sure: where its logit is closest to 0.

    ``count * oversample`` points are drawn evenly; the ``count * importance`` least sure of them are kept, and as many
    new ones are drawn as are missing.

    Args:
        logits: ``(N, H, W)``. count: points a mask. oversample: at least 1. importance: from 0 to 1.
    Returns:
        ``(N, count, 2)``, as :func:`point_values` takes them.
    Source: Kirillov et al., PointRend, CVPR 2020, section 3.2; ``get_uncertain_point_coords_with_randomness`` of mmdet.
        Deviation: none but the generator.
    """

    def drawn(points: int) -> Tensor:
        return torch.rand(len(logits), points, 2, generator=generator, device=logits.device, dtype=logits.dtype)

    many, kept = drawn(int(count * oversample)), int(count * importance)
    least = point_values(logits, many).abs().topk(kept, 1, largest=False).indices
    return torch.cat([many.gather(1, least[..., None].expand(-1, -1, 2)), drawn(count - kept)], 1)


def dice_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""How little two soft masks overlap.

    .. math:: 1 - \frac{2 \sum_p s_p t_p + 1}{\sum_p s_p^2 + \sum_p t_p^2 + 1}
              = \frac{\sum_p (s_p - t_p)^2}{\sum_p s_p^2 + \sum_p t_p^2 + 1}

    Args:
        student, teacher: ``(N, P)``, from 0 to 1.
    Returns:
        ``(N,)``, from 0, where both are equal, to 1.
    Source: Milletari et al., V-Net, 2016, with the 1 that Mask2Former's dice adds. Deviation: Mask2Former's has no
        squares, so that it would not be least where a student gives the soft mask of its teacher.
    """
    return (student - teacher).square().sum(1) / (student.square().sum(1) + teacher.square().sum(1) + 1)
