"""Connectors: what stands between a tapped feature and the loss, so that student and teacher can be compared.

A connector is a module ``forward(x, like)``: ``x`` the feature of its own side, ``like`` the other side's, of which a
connector may use the shape. Where its constructor has ``in_channels`` and ``out_channels``, a
:class:`~lckd_mm.terms.Term` fills them in from the dry run.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import bn_margin, margin_relu
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


@MODELS.register_module()
class MarginReLU(nn.Module):
    """``max(x, m)`` with a margin m below zero for each channel: what OFD makes of the teacher's feature.

    As ``teacher_connector`` of a term whose taps lie before a ReLU.

    Args:
        in_channels: of the feature.
        margin: 'bn' takes it from the BatchNorm whose output the tap reads, itself or after the addition that ends a
            residual block (:func:`~lckd_mm.functional.bn_margin`);
            'data' is the mean of the negative responses over training images, for nets without BatchNorm: the
            DistillationHook finds it before the first iteration, on ``batches`` batches.
        batches: of the estimate from data; of several connectors, the largest number counts for all.
    Raises:
        ValueError: an unknown ``margin``; 'bn' where no BatchNorm with a weight comes before the tap.
    Source: OFD (Heo et al., ICCV 2019), eq. 1 and 4. Deviation: of a residual stage the last block's last BatchNorm is
        taken, as the authors do, although the identity is added after it.
    """

    def __init__(self, in_channels: int, margin: str = 'bn', batches: int = 16):
        super().__init__()
        if margin not in ('bn', 'data'):
            raise ValueError(f"MarginReLU: unknown margin {margin!r}, expected 'bn' or 'data'")
        if batches < 1:
            raise ValueError(f'MarginReLU: batches must be at least 1, got {batches}')
        self.source, self.batches = margin, batches
        self.register_buffer('margin', torch.zeros(in_channels))
        self.register_buffer('known', torch.zeros((), dtype=torch.uint8))

    @property
    def waits_for_data(self) -> bool:
        return self.source == 'data' and not self.known

    @torch.no_grad()
    def bind(self, norm: nn.Module | None, who: str) -> None:
        """Take the margin from the BatchNorm before the tap."""
        if self.source != 'bn':
            return
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.weight is None:
            found = 'no normalisation layer' if norm is None else type(norm).__name__
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                found += ' without the two'
            raise ValueError(
                f'{who}: MarginReLU needs a BatchNorm with weight and bias, but before the tap comes {found}; '
                "estimate the margin from training images: dict(type='lckd_mm.MarginReLU', margin='data')"
            )
        if len(norm.weight) != len(self.margin):
            raise ValueError(
                f'{who}: the last BatchNorm before the tap has {len(norm.weight)} channels, the feature '
                f"{len(self.margin)}; tap the BatchNorm's own output, or use MarginReLU with margin='data'"
            )
        self.margin.copy_(bn_margin(norm.weight, norm.bias))
        self.known.fill_(1)

    @torch.no_grad()
    def settle(self, sums: Tensor, counts: Tensor) -> None:
        """Take the margin from the sums and counts of negative responses, per channel."""
        self.margin.copy_(sums / counts.clamp(min=1))
        self.known.fill_(1)

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        return margin_relu(x, self.margin)
