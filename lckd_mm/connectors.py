"""Connectors: what stands between a tapped feature and the loss, so that student and teacher can be compared.

A connector is a module ``forward(x, like)``: ``x`` the feature of its own side, ``like`` the other side's, of which a
connector may use the shape. Where its constructor has ``in_channels`` and ``out_channels``, a
:class:`~lckd_mm.terms.Term` fills them in from the dry run.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .registry import MODELS


@MODELS.register_module()
class ConvBN(nn.Sequential):
    """1x1 convolution without bias, then BatchNorm: maps a student's feature to the teacher's width.

    Args:
        in_channels: of the feature. out_channels: of the other side's feature.
    Source: the connector of OFD (Heo et al., ICCV 2019) and LONDON, He-normal (fan-out) initialised as there.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        nn.init.kaiming_normal_(self[0].weight, mode='fan_out', nonlinearity='relu')

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        return super().forward(x)


@MODELS.register_module()
class MatchSize(nn.Module):
    """Resizes a map (B, C, H, W) to the height and width of the other side's, bilinearly; no parameters.

    Args:
        align_corners: as in :func:`torch.nn.functional.interpolate`.
    """

    def __init__(self, align_corners: bool = False):
        super().__init__()
        self.align_corners = align_corners

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        if x.shape[2:] == like.shape[2:]:
            return x
        return F.interpolate(x, like.shape[2:], mode='bilinear', align_corners=self.align_corners)
