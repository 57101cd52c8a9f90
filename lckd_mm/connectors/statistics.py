"""Connectors that look at a feature's values: margins, and means and deviations of channels."""

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from .. import arguments
from ..functional import bn_margin, standardised
from ..functional.shapes import channels_first
from ..registry import MODELS
from .base import Connector


@MODELS.register_module()
class MarginReLU(Connector):
    """``max(x, m)`` with a negative margin m per channel: OFD's transform of the teacher's feature.

    Use it as ``teacher_connector`` of a term whose taps lie before a ReLU, on maps, tokens or vectors.

    Args:
        in_channels: channels of the feature.
        margin: 'bn' computes it from the BatchNorm that produces the tapped feature, directly or before the addition
            that ends a residual block (:func:`~lckd_mm.functional.bn_margin`);
            'data' is the mean of the negative responses over training images: the DistillationHook estimates it before
            the first iteration, on ``batches`` batches. The default, 'auto', is 'bn' where such a BatchNorm comes
            before the tap, otherwise 'data'. A tap behind a ReLU has margins of 0.
        batches: number of batches for 'data'.
    Raises:
        ValueError: an unknown ``margin``; 'bn' where no BatchNorm with a weight comes before the tap.
    Example:
        loss_ofd=dict(
            loss=dict(type='lckd_mm.OFDLoss'),
            on=['stage2', 'stage3', 'stage4'], weight=1e-4,
            connector=dict(type='lckd_mm.ConvBN'),
            teacher_connector=dict(type='lckd_mm.MarginReLU'),
        )
    Source: OFD (Heo et al., ICCV 2019), eq. 1 and 4. Deviation: for a residual stage the last BatchNorm of the last
        block is used, as the authors do, although the identity is added after it.
    """

    takes = ('map', 'tokens', 'vector')
    of_teacher = True

    def __init__(self, in_channels: int, margin: str = 'auto', batches: int = 16):
        super().__init__()
        arguments.choice('MarginReLU', 'margin', margin, ('auto', 'bn', 'data'))
        arguments.integer('MarginReLU', 'batches', batches)
        arguments.integer('MarginReLU', 'in_channels', in_channels)
        self.asked = self.source = margin
        self.batches = batches
        self._sums: Tensor | None = None
        self.register_buffer('margin', torch.zeros(in_channels))
        self.register_buffer('known', torch.zeros((), dtype=torch.uint8))

    @property
    def waits_for_data(self) -> bool:
        return self.source == 'data' and not self.known

    @torch.no_grad()
    def bind(self, norm: nn.Module | None, who: str) -> None:
        """Take the margin from the BatchNorm before the tap."""
        is_batch_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm)
        usable = is_batch_norm and norm.weight is not None
        if self.asked == 'auto':
            self.source = 'bn' if usable and len(norm.weight) == len(self.margin) else 'data'
        if self.source == 'data':
            return
        if not usable:
            found = 'no normalisation layer' if norm is None else type(norm).__name__
            found += ' without the two' if is_batch_norm else ''
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
    def observe(self, x: Tensor) -> None:
        negative = channels_first(x).transpose(0, 1).flatten(1).float().clamp(max=0)
        sums = torch.stack([negative.sum(1), (negative < 0).sum(1).float()])
        self._sums = sums if self._sums is None else self._sums + sums

    @torch.no_grad()
    def finish_fitting(self) -> str:
        """Compute the margin from the observations of all ranks; returns a message for the log."""
        all_reduce(self._sums)
        self.margin.copy_(self._sums[0] / self._sums[1].clamp(min=1))
        self.known.fill_(1)
        self._sums = None
        return 'its margins are estimated from training images'

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        margin = self.margin.to(x.dtype)
        return torch.maximum(x, margin.view(-1, 1, 1) if x.dim() == 4 else margin)


@MODELS.register_module()
class Standardise(Connector):
    """Each channel with mean 0 and deviation 1 over batch and positions; no parameters.

    For either net. With ``CWDLoss(tau=1)`` on the teacher's side, and ``ConvBN(affine=False)`` on the student's, on the
    levels of the neck, it is mmyolo's recipe of RTMDet.

    Example:
        loss_cwd=dict(
            loss=dict(type='lckd_mm.CWDLoss', tau=1.0),
            on=['p3', 'p4', 'p5'],
            connector=dict(type='lckd_mm.ConvBN', affine=False),
            teacher_connector=dict(type='lckd_mm.Standardise'),
        )
    Source: :func:`~lckd_mm.functional.standardised`; mmyolo's ``configs/rtmdet/distillation``, whose BatchNorm without
        affine and running statistics is the same but for its small constant. Deviation: the unbiased deviation.
    """

    takes = ('map', 'tokens', 'vector')

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        return channels_first(standardised(channels_first(x)))


@MODELS.register_module()
class MatchStatistics(Connector):
    r"""Gives each channel the mean and the deviation that it has in the other net's feature; no parameters.

    .. math:: \hat x_c \, s_c(y) + \mu_c(y)

    with x standardised, and mean and unbiased deviation of the other net's channel over batch and positions; these are
    constants for the gradient. It makes a student's feature one that the teacher's later layers can read, with the
    term's ``reuse``. Channels must be equal in number; another connector before it maps them.

    Raises:
        ValueError: channels that differ.
    Example:
        loss_crosskd=dict(
            loss=dict(type='lckd_mm.BCKDLoss'),
            student='tower',  # tower='bbox_head.cls_convs.2.activate@in#*'
            reuse='tower', teacher='logits',
            connector=dict(type='lckd_mm.MatchStatistics'),
        )
    Source: Wang et al., CrossKD, CVPR 2024; the alignment of the authors' ``crosskd_gfl.py`` and of their other heads.
        Deviation: that of :func:`~lckd_mm.functional.standardised`. Each rank has the statistics of its own samples.
    """

    takes = ('map', 'tokens', 'vector')

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        x, like = channels_first(x), channels_first(like).detach()
        if x.shape[1] != like.shape[1]:
            kind = 'ConvBN' if x.dim() == 4 else 'Linear'
            raise ValueError(
                f"MatchStatistics: a feature of {x.shape[1]} channels cannot take the statistics of the other net's "
                f"{like.shape[1]}; write connector=[dict(type='lckd_mm.{kind}'), dict(type='lckd_mm.MatchStatistics')]"
            )
        rows = like.transpose(0, 1).flatten(1)
        shape = 1, -1, *[1] * (x.dim() - 2)
        deviation, mean = torch.std_mean(rows, 1, correction=min(rows.shape[1] - 1, 1))
        return channels_first(standardised(x) * deviation.view(shape) + mean.view(shape))
