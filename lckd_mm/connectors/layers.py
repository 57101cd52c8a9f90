"""Connectors that map a feature's channels, resize it, or mask it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import arguments
from ..contexts import own_generator
from ..functional.shapes import AS_MAPS, check_kind
from ..registry import MODELS
from .base import Connector, Layers


@MODELS.register_module()
class ConvBN(Layers):
    """1x1 convolution without bias, then BatchNorm: maps a student's feature to the teacher's width.

    Args:
        in_channels: channels of the feature. out_channels: channels of the other net's feature.
        affine: whether the BatchNorm has weight and bias; without, each channel has mean 0 and deviation 1, as those of
            a teacher behind :class:`Standardise`.
    Example:
        loss_fitnets=dict(
            loss=dict(type='lckd_mm.FitNetsLoss'),
            on='stage4',
            connector=dict(type='lckd_mm.ConvBN'),
        )
    Source: the connector of OFD (Heo et al., ICCV 2019) and LONDON, He-normal (fan-out) initialised as there; without
        affine, that of mmyolo's ``configs/rtmdet/distillation``. Deviation: there the BatchNorm keeps no running
        statistics, which no training reads.
    """

    otherwise = "dict(type='lckd_mm.Linear') takes tokens and vectors"

    def __init__(self, in_channels: int, out_channels: int, affine: bool = True):
        arguments.boolean('ConvBN', 'affine', affine)
        norm = nn.BatchNorm2d(out_channels, affine=affine)
        super().__init__(nn.Conv2d(in_channels, out_channels, 1, bias=False), norm)
        nn.init.kaiming_normal_(self[0].weight, mode='fan_out', nonlinearity='relu')


@MODELS.register_module()
class Linear(Layers):
    """A linear layer along the channels of tokens (B, N, C) or of vectors (B, C): maps them to the other net's width.

    Args:
        in_channels: channels of the feature. out_channels: channels of the other net's feature.
    Example:
        loss_fitnets=dict(
            loss=dict(type='lckd_mm.FitNetsLoss'),
            on='stage4',
            connector=dict(type='lckd_mm.Linear'),
        )
    Source: the usual projection between transformers of two widths, with a bias, in torch's initialisation.
    """

    takes = ('tokens', 'vector')
    otherwise = "dict(type='lckd_mm.ConvBN') takes maps"

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(nn.Linear(in_channels, out_channels))


@MODELS.register_module()
class MLP(Connector):
    """Two linear layers along the channels, with a ReLU between: on maps, 1x1 convolutions.

    Args:
        in_channels: channels of the feature. out_channels: channels of the other net's feature, and between the layers.
    Example:
        loss_fitnets=dict(
            loss=dict(type='lckd_mm.FitNetsLoss'),
            on='stage4',
            connector=dict(type='lckd_mm.MLP'),
        )
    Source: the projector of Ultralytics' distillation (``nn/distill_model.py``, read in a public copy of it), in
        torch's initialisation. Deviation: it takes tokens and vectors, too.
    """

    takes = ('map', 'tokens', 'vector')

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_channels, out_channels), nn.ReLU(), nn.Linear(out_channels, out_channels)
        )

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        return self.layers(x.movedim(1, -1)).movedim(-1, 1) if x.dim() == 4 else self.layers(x)


@MODELS.register_module()
class MatchSize(Connector):
    """Bilinearly resizes a map (B, C, H, W) to the other net's height and width; no parameters.

    Args:
        align_corners: as in :func:`torch.nn.functional.interpolate`.
    Example:
        loss_fitnets=dict(
            loss=dict(type='lckd_mm.FitNetsLoss'),
            on='stage4',
            connector=[dict(type='lckd_mm.ConvBN'), dict(type='lckd_mm.MatchSize')],
        )
    """

    takes = ('map',)

    def __init__(self, align_corners: bool = False):
        super().__init__()
        self.align_corners = arguments.boolean('MatchSize', 'align_corners', align_corners)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        check_kind("MatchSize, to the other net's feature", like, ('map',), AS_MAPS)
        if x.shape[2:] == like.shape[2:]:
            return x
        return F.interpolate(x, like.shape[2:], mode='bilinear', align_corners=self.align_corners)


@MODELS.register_module()
class MaskedGenerator(Connector):
    r"""Generates the teacher's map from a part of the student's positions.

    .. math:: G(M \odot P(x)), \qquad M_{bij} = 0 \ \text{with probability}\ \lambda, \text{else}\ 1

    G is a 3x3 convolution, a ReLU and a 3x3 convolution. P is a 1x1 convolution if the widths differ, else nothing.
    With :class:`~lckd_mm.losses.MGDLoss` it is masked generative distillation.

    The mask is drawn anew in each call and on each rank, from a generator of its own, so that the random numbers of the
    training stay as they are without it; a resumed run draws on.

    Args:
        in_channels: channels of the feature. out_channels: channels of the other net's feature.
        ratio: :math:`\lambda`, the share of positions that are hidden.
    Raises:
        ValueError: a ratio outside of [0, 1].
    Example:
        loss_mgd=dict(
            loss=dict(type='lckd_mm.MGDLoss'),
            on=['p3', 'p4', 'p5', 'p6', 'p7'],
            connector=dict(type='lckd_mm.MaskedGenerator', ratio=0.65),
            weight=2e-5,
        )
    Source: Yang et al., Masked Generative Distillation (MGD), ECCV 2022; the layers, the mask and the ratio of
        detectors, 0.65, are those of the authors' ``det/mmdet/distillation/losses/mgd.py`` and of mmrazor's
        ``mgd_connector.py``. Deviation: none.
    """

    takes = ('map',)

    def __init__(self, in_channels: int, out_channels: int, ratio: float = 0.65):
        super().__init__()
        self.ratio = arguments.number('MaskedGenerator', 'ratio', ratio, at_least=0, at_most=1)
        self.align = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.generator = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        # Begins anywhere, so that generators of several taps draw other masks.
        self.register_buffer('draws', torch.randint(1 << 40, ()))

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        generator = own_generator(self.draws, x.device)
        shown = torch.rand(len(x), 1, *x.shape[2:], generator=generator, device=x.device) >= self.ratio
        return self.generator(self.align(x) * shown)
