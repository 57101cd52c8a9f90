"""Critics: small nets that score each sample's feature, to tell the student's from the teacher's or a peer's."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from .. import arguments
from ..registry import MODELS


@MODELS.register_module()
class ConvCritic(nn.Module):
    """Convolutions of stride 2 with leaky ReLUs, then the mean over positions and a linear layer; no BatchNorm.

    BatchNorm would couple the samples; without it each sample's output and gradient depend on that sample alone. The
    net is a chain of layers, so :func:`~lckd_mm.functional.product_bound` bounds its Lipschitz constant.

    Args:
        in_channels: channels of the feature. widths: channels of the convolutions. kernel: kernel size; use 1 for
            vectors, which are 1x1 maps.
        leak: slope of the activations below zero.
    Shapes: maps (B, C, H, W), or vectors (B, C), which are read as 1x1 maps, to values (B,).
    Raises:
        ValueError: a feature of another shape, an even kernel.
    Example:
        loss=dict(
            type='lckd_mm.AdversarialLoss',
            critic=dict(type='lckd_mm.ConvCritic', widths=(64, 64)),
        )
    Source: similar to AFD's discriminator (Chung et al., ICML 2020). In the only public code found, not the authors',
        that is a 2x2 convolution to half the width, BatchNorm, leaky ReLU, a 2x2 convolution of stride 2 and a sigmoid.
        Deviation: the widths and kernels; no BatchNorm, and no sigmoid.
    """

    def __init__(self, in_channels: int, widths: Sequence[int] = (64, 64), kernel: int = 3, leak: float = 0.2):
        super().__init__()
        arguments.integer('ConvCritic', 'in_channels', in_channels)
        widths = arguments.integers('ConvCritic', 'widths', widths)
        if arguments.integer('ConvCritic', 'kernel', kernel) % 2 == 0:
            raise ValueError(f'ConvCritic: kernel must be odd, got {kernel}')
        arguments.number('ConvCritic', 'leak', leak, at_least=0, at_most=1)
        layers: list[nn.Module] = []
        for a, b in pairwise((in_channels, *widths)):
            layers += [nn.Conv2d(a, b, kernel, stride=2, padding=kernel // 2), nn.LeakyReLU(leak)]
        last = widths[-1] if widths else in_channels
        self.in_channels = in_channels
        self.chain = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 1), nn.Flatten(0))

    def as_map(self, x: Tensor) -> Tensor:
        """The feature as a map (B, C, H, W), the input of ``chain``."""
        if x.dim() not in (2, 4) or x.shape[1] != self.in_channels:
            raise ValueError(
                f'ConvCritic: expected (B, {self.in_channels}, H, W) or (B, {self.in_channels}), got {tuple(x.shape)}'
            )
        return x if x.dim() == 4 else x[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(self.as_map(x))
