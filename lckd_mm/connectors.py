"""Connectors: modules between a tapped feature and the loss that make student and teacher comparable."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn

from . import arguments
from .functional import bn_margin
from .functional.shapes import channels_first, check_kind, mean
from .registry import MODELS


class Connector(nn.Module):
    """Base class of connectors, modules with ``forward(x, like)``.

    ``x`` is a feature of the connector's own net, ``like`` the other net's, for its shape only: maps (B, C, H, W),
    tokens (B, N, C) or vectors (B, C); a connector that needs certain kinds names them in ``takes``. There is one
    instance per tap. A term fills in ``in_channels`` and ``out_channels`` from the dry run if the constructor has them.

    A connector of the teacher's feature (``of_teacher``) may read the BatchNorm before the tap (:meth:`bind`), or need
    training images: while ``waits_for_data``, :class:`~lckd_mm.hooks.DistillationHook` passes it the features of
    ``batches`` batches before the first iteration (:meth:`observe`, then :meth:`finish_fitting`). With ``online`` it is
    trained by the loss of its term.
    """

    #: The kinds that it takes, of 'map', 'tokens' and 'vector'; None if it needs not know the axes.
    takes: tuple[str, ...] | None = None
    #: What to take instead for other kinds.
    otherwise = ''
    of_teacher = False
    waits_for_data = False
    online = False
    batches = 0

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.takes:
            check_kind(type(self).__name__, x, self.takes, self.otherwise)
        return super().__call__(x, *args, **kwargs)

    def bind(self, norm: nn.Module | None, who: str) -> None:
        """Read the norm that produces the tapped feature; called after building, and after the teacher is loaded."""

    def observe(self, x: Tensor) -> None:
        """Take in one batch's feature."""

    def finish_fitting(self) -> str:
        """Finish with what was observed; returns a message for the log."""
        return ''


class _Layers(Connector, nn.Sequential):
    """A chain of layers that does not look at the other net's feature; on maps, unless it says otherwise."""

    takes = ('map',)

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        return super().forward(x)


@MODELS.register_module()
class ConvBN(_Layers):
    """1x1 convolution without bias, then BatchNorm: maps a student's feature to the teacher's width.

    Args:
        in_channels: channels of the feature. out_channels: channels of the other net's feature.
    Source: the connector of OFD (Heo et al., ICCV 2019) and LONDON, He-normal (fan-out) initialised as there.
    """

    otherwise = "dict(type='lckd_mm.Linear') takes tokens and vectors"

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        nn.init.kaiming_normal_(self[0].weight, mode='fan_out', nonlinearity='relu')


@MODELS.register_module()
class Linear(_Layers):
    """A linear layer along the channels of tokens (B, N, C) or of vectors (B, C): maps them to the other net's width.

    Args:
        in_channels: channels of the feature. out_channels: channels of the other net's feature.
    Source: the usual projection between transformers of two widths, with a bias, in torch's initialisation.
    """

    takes = ('tokens', 'vector')
    otherwise = "dict(type='lckd_mm.ConvBN') takes maps"

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(nn.Linear(in_channels, out_channels))


@MODELS.register_module()
class MatchSize(Connector):
    """Bilinearly resizes a map (B, C, H, W) to the other net's height and width; no parameters.

    Args:
        align_corners: as in :func:`torch.nn.functional.interpolate`.
    """

    takes = ('map',)

    def __init__(self, align_corners: bool = False):
        super().__init__()
        self.align_corners = arguments.boolean('MatchSize', 'align_corners', align_corners)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        if x.shape[2:] == like.shape[2:]:
            return x
        return F.interpolate(x, like.shape[2:], mode='bilinear', align_corners=self.align_corners)


@MODELS.register_module()
class MarginReLU(Connector):
    """``max(x, m)`` with a negative margin m per channel: OFD's transform of the teacher's feature.

    Use it as ``teacher_connector`` of a term whose taps lie before a ReLU, on maps, tokens or vectors.

    Args:
        in_channels: channels of the feature.
        margin: 'bn' computes it from the BatchNorm that produces the tapped feature, directly or before the addition
            that ends a residual block (:func:`~lckd_mm.functional.bn_margin`);
            'data' is the mean of the negative responses over training images, for nets without BatchNorm: the
            DistillationHook estimates it before the first iteration, on ``batches`` batches.
        batches: number of batches for 'data'.
    Raises:
        ValueError: an unknown ``margin``; 'bn' where no BatchNorm with a weight comes before the tap.
    Source: OFD (Heo et al., ICCV 2019), eq. 1 and 4. Deviation: for a residual stage the last BatchNorm of the last
        block is used, as the authors do, although the identity is added after it.
    """

    takes = ('map', 'tokens', 'vector')
    of_teacher = True

    def __init__(self, in_channels: int, margin: str = 'bn', batches: int = 16):
        super().__init__()
        arguments.choice('MarginReLU', 'margin', margin, ('bn', 'data'))
        arguments.integer('MarginReLU', 'batches', batches)
        arguments.integer('MarginReLU', 'in_channels', in_channels)
        self.source, self.batches = margin, batches
        self._sums: Tensor | None = None
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
        is_batch_norm = isinstance(norm, nn.modules.batchnorm._BatchNorm)
        if not is_batch_norm or norm.weight is None:
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


def _paraphrased(who: str, name: str, channels: int, rate: float) -> int:
    arguments.integer(who, name, channels)
    arguments.number(who, 'rate', rate, above=0)
    return max(1, round(channels * rate))


def _conv_layers(*widths: int) -> list[nn.Module]:
    """3x3 convolutions of these widths, each followed by BatchNorm and a leaky ReLU."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.LeakyReLU(0.1)]
    return layers


@MODELS.register_module()
class Translator(_Layers):
    """Three 3x3 convolutions that turn the student's feature into a factor; trained with the student.

    Args:
        in_channels: channels of the feature. out_channels: channels of the teacher's feature.
        rate: channels of the factor divided by the teacher's; equal to that of the :class:`Paraphraser`.
    Source: Kim, Park, Kwak, Factor Transfer (FT), NeurIPS 2018. Deviation: BatchNorm after each convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, rate: float = 0.5):
        factor = _paraphrased('Translator', 'out_channels', out_channels, rate)
        super().__init__(*_conv_layers(in_channels, in_channels, factor, factor))


@MODELS.register_module()
class FactorEncoder(_Layers):
    """Leaky ReLU, then three 3x3 convolutions that turn the student's feature into a factor; trained with the student.

    Args:
        in_channels: channels of the feature. out_channels: channels of the teacher's feature.
        rate: channels of the factor divided by the teacher's; equal to that of the :class:`AutoEncoder`.
    Source: Huang et al., Revisiting Knowledge Distillation: An Inheritance and Exploration Framework (IE-KD), CVPR
        2021, the authors' encoder. Deviation: the convolutions have biases and torch's initial values, where the
        authors' have no biases and He's normal ones.
    """

    def __init__(self, in_channels: int, out_channels: int, rate: float = 0.5):
        factor = _paraphrased('FactorEncoder', 'out_channels', out_channels, rate)
        super().__init__(nn.LeakyReLU(0.1), *_conv_layers(in_channels, in_channels, factor, factor))


@MODELS.register_module()
class AutoEncoder(Connector):
    """Turns the teacher's feature into a factor: the encoder of an auto-encoder trained to reconstruct the feature.

    Use it as ``teacher_connector``. Before the first iteration :class:`~lckd_mm.hooks.DistillationHook` trains it on
    the teacher's features of training images, with Adam, and freezes it; a resumed run loads it from the checkpoint.
    ``forward`` uses running statistics and does not update them. The encoder has the layers of :class:`FactorEncoder`,
    the decoder mirrors it with transposed convolutions.

    Args:
        in_channels: channels of the feature.
        rate: channels of the factor divided by the feature's.
        mode: reconstruction error: 'l1', mean absolute, or 'l2', mean squared.
        batches: number of training batches, one update per batch (one per level, if a tap gives several; levels with
            one value per channel are skipped). lr: learning rate of Adam.
        online: for teachers that still learn: train it with the student's optimizer instead, through a separate term
            with :class:`~lckd_mm.losses.ReconstructionLoss`; other terms name that term as ``teacher_connector``.
    Raises:
        ValueError: an unknown mode; a rate, batches or lr not above 0; fewer than two values per channel in every
            batch.
    Source: IE-KD (Huang et al., CVPR 2021), section 3; 'l1' is the authors' code, 'l2' the paper. Deviation: the
        decoder has no norm and activation at the end, so it can output any feature; Adam; the authors train it for 30
        epochs.
    """

    MODES = ('l1', 'l2')
    takes = ('map',)
    of_teacher = True

    def __init__(
        self,
        in_channels: int,
        rate: float = 0.5,
        mode: str = 'l1',
        batches: int = 500,
        lr: float = 1e-3,
        online: bool = False,
    ):
        super().__init__()
        who = type(self).__name__
        arguments.choice(who, 'mode', mode, self.MODES)
        arguments.integer(who, 'batches', batches)
        arguments.number(who, 'lr', lr, above=0)
        arguments.boolean(who, 'online', online)
        factor = _paraphrased(who, 'in_channels', in_channels, rate)
        self.mode, self.batches, self.lr, self.online = mode, batches, lr, online
        self.encoder = nn.Sequential(nn.LeakyReLU(0.1), *_conv_layers(in_channels, in_channels, factor, factor))
        layers: list[nn.Module] = []
        for a, b in ((factor, factor), (factor, in_channels)):
            layers += [nn.ConvTranspose2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.LeakyReLU(0.1)]
        self.decoder = nn.Sequential(*layers, nn.ConvTranspose2d(in_channels, in_channels, 3, padding=1))
        self.register_buffer('known', torch.zeros((), dtype=torch.uint8))
        self._errors: list[tuple[float, float]] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._learns = False
        self.requires_grad_(online)
        self.train(False)

    @property
    def waits_for_data(self) -> bool:
        return not self.online and not self.known

    def train(self, mode: bool = True) -> 'AutoEncoder':
        # The factor uses running statistics whatever mode the student is in.
        self._learns = mode
        return super().train(False)

    def error(self, reconstruction: Tensor, x: Tensor) -> Tensor:
        gap = reconstruction - x
        return mean(gap.abs() if self.mode == 'l1' else gap.square())

    def reconstruct(self, x: Tensor) -> Tensor:
        """R(x); in online training with batch statistics, if there are at least two values per channel."""
        super().train(self._learns and x[:, 0].numel() > 1)
        try:
            return self.decoder(self.encoder(x))
        finally:
            super().train(False)

    @torch.enable_grad()
    def observe(self, x: Tensor) -> None:
        """One update on a feature ``(B, C, H, W)``; gradients are averaged over the ranks."""
        x = x.detach().float()
        too_few = x.new_tensor(x[:, 0].numel() < 2)  # for BatchNorm
        # Image sizes may differ between ranks; all must agree to skip the batch, or the others would wait for ever.
        all_reduce(too_few, 'max')
        if too_few:
            return
        if self._optimizer is None:
            self.requires_grad_(True)
            self._optimizer = torch.optim.Adam(self.parameters(), self.lr)
        super().train(True)
        reconstruction = self.decoder(self.encoder(x))
        error = self.error(reconstruction, x)
        self._optimizer.zero_grad()
        error.backward()
        for parameter in self.parameters():
            all_reduce(parameter.grad, 'mean')
        self._optimizer.step()
        with torch.no_grad():
            lost = F.mse_loss(reconstruction, x) / x.var(correction=0).clamp(min=1e-12)
            relative = F.l1_loss(reconstruction, x) / x.abs().mean().clamp(min=1e-12)
        self._errors.append((lost.item(), relative.item()))

    def finish_fitting(self) -> str:
        """Freeze; returns a message with the lost fraction of variance and the relative absolute error."""
        if self._optimizer is None:
            raise ValueError(
                f'{type(self).__name__}: its features had one value per channel in every batch, too few to train it; '
                'tap an earlier layer, or take larger batches'
            )
        self._optimizer.zero_grad()
        self._optimizer = None
        self.requires_grad_(False)
        super().train(False)
        for buffer in self.buffers():
            if buffer.is_floating_point():
                all_reduce(buffer, 'mean')
        self.known.fill_(1)
        first, last = self._errors[0][0], self._errors[-10:]
        self._errors = []
        lost, relative = (sum(values) / len(last) for values in zip(*last))
        return (
            f'its auto-encoder loses {lost:.1%} of the variance, {first:.0%} at first; its mean absolute error is '
            f'{relative:.1%} of the mean absolute feature'
        )

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.online):
            return self.encoder(x)


@MODELS.register_module()
class Paraphraser(AutoEncoder):
    """FT's variant of :class:`AutoEncoder`, without the leaky ReLU at the start.

    It is trained before the first iteration, with the squared error, and then frozen.

    Args and Raises: as :class:`AutoEncoder`.
    Source: Kim, Park, Kwak, Factor Transfer (FT), NeurIPS 2018. Deviation: the decoder has no norm and activation at
        the end, so it can output any feature; BatchNorm elsewhere, which the authors leave out; the squared error and
        Adam, where their code has the absolute error and SGD.
    """

    def __init__(self, in_channels: int, rate: float = 0.5, batches: int = 500, lr: float = 1e-3):
        super().__init__(in_channels, rate, 'l2', batches, lr)
        self.encoder = nn.Sequential(*list(self.encoder)[1:])


@MODELS.register_module()
class ChannelPart(Connector):
    """One of two halves of a feature's channels; in a chain, another connector may follow it.

    Two terms with the two parts divide a student's feature between them.

    Args:
        in_channels: channels of the feature. part: 'inherit', the first half, or 'explore', the rest.
    Raises:
        ValueError: an unknown part.
    Source: IE-KD (Huang et al., CVPR 2021), section 3, where each part has an encoder trained with the student.
        Deviation: none.
    """

    takes = ('map', 'tokens', 'vector')

    def __init__(self, in_channels: int, part: str = 'inherit'):
        super().__init__()
        arguments.choice('ChannelPart', 'part', part, ('inherit', 'explore'))
        half = in_channels // 2
        self.part = slice(0, half) if part == 'inherit' else slice(half, in_channels)

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        return x[..., self.part] if x.dim() == 3 else x[:, self.part]


class Chain(Connector, nn.ModuleList):
    """Connectors one after the other: a config's list of connectors.

    Raises:
        ValueError: more than one that needs training images, or one behind MatchSize; one with ``online=True``.
    """

    def __init__(self, connectors: Sequence[Connector]):
        super().__init__(connectors)
        fitted = [connector for connector in connectors if connector.waits_for_data or connector.online]
        if len(fitted) > 1 or any(connector.online for connector in fitted):
            raise ValueError(
                f'a list of connectors takes one that is fitted to training images before the run, and none with '
                f'online=True; got {", ".join(type(connector).__name__ for connector in fitted)}'
            )
        if fitted and any(isinstance(connector, MatchSize) for connector in connectors[: connectors.index(fitted[0])]):
            raise ValueError(f'write {type(fitted[0]).__name__} before MatchSize: it is fitted without the student')
        self.batches = max((connector.batches for connector in fitted), default=0)

    @property
    def waits_for_data(self) -> bool:
        return any(connector.waits_for_data for connector in self)

    def bind(self, norm: nn.Module | None, who: str) -> None:
        """The norm before the tap is that of each connector up to the first with weights."""
        for connector in self:
            connector.bind(norm, who)
            if any(True for _ in connector.parameters()):
                norm = None

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Let the waiting connector take in what those before it make of the feature."""
        for connector in self:
            if connector.waits_for_data:
                return connector.observe(x)
            x = connector(x, x)

    def finish_fitting(self) -> str:
        return next(connector for connector in self if connector.waits_for_data).finish_fitting()

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        for connector in self:
            x = connector(x, like)
        return x
