"""Connectors of factors: parts of the channels, auto-encoders, and what maps a student to their factors."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn

from .. import arguments
from ..functional.shapes import mean
from ..registry import MODELS
from .base import Connector, Layers


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
class Translator(Layers):
    """Three 3x3 convolutions that turn the student's feature into a factor; trained with the student.

    Args:
        in_channels: channels of the feature. out_channels: channels of the teacher's feature.
        rate: channels of the factor divided by the teacher's; equal to that of the :class:`Paraphraser`.
    Example:
        loss_ft=dict(
            loss=dict(type='lckd_mm.FTLoss'),
            on='stage4', weight=500.0,
            connector=dict(type='lckd_mm.Translator'),
            teacher_connector=dict(type='lckd_mm.Paraphraser'),
        )
    Source: Kim, Park, Kwak, Factor Transfer (FT), NeurIPS 2018. Deviation: BatchNorm after each convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, rate: float = 0.5):
        factor = _paraphrased('Translator', 'out_channels', out_channels, rate)
        super().__init__(*_conv_layers(in_channels, in_channels, factor, factor))


@MODELS.register_module()
class FactorEncoder(Layers):
    """Leaky ReLU, then three 3x3 convolutions that turn the student's feature into a factor; trained with the student.

    Args:
        in_channels: channels of the feature. out_channels: channels of the teacher's feature.
        rate: channels of the factor divided by the teacher's; equal to that of the :class:`AutoEncoder`.
    Example:
        loss_inherit=dict(
            loss=dict(type='lckd_mm.FTLoss'),
            on='stage4', weight=50.0,
            connector=dict(type='lckd_mm.FactorEncoder'),
            teacher_connector=dict(type='lckd_mm.AutoEncoder'),
        )
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
    Example:
        loss_inherit=dict(
            loss=dict(type='lckd_mm.FTLoss'),
            on='stage4', weight=50.0,
            connector=dict(type='lckd_mm.FactorEncoder'),
            teacher_connector=dict(type='lckd_mm.AutoEncoder'),
        )
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
    Example:
        loss_ft=dict(
            loss=dict(type='lckd_mm.FTLoss'),
            on='stage4', weight=500.0,
            connector=dict(type='lckd_mm.Translator'),
            teacher_connector=dict(type='lckd_mm.Paraphraser'),
        )
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
    Example:
        loss_inherit=dict(
            loss=dict(type='lckd_mm.ATLoss'),
            on='stage4',
            connector=dict(type='lckd_mm.ChannelPart', part='inherit'),
            weight=1000.0,
        )
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
