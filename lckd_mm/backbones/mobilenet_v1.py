"""MobileNetV1, for images of 224 x 224 or 32 x 32."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from .. import arguments
from ..registry import MODELS
from .initialisation import HE_NORMAL

# Channels and stride of each block at full width.
_BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


class _Block(nn.Sequential):
    """depthwise conv3x3 - BN - ReLU - conv1x1 - BN - ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.pointwise = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()


@MODELS.register_module()
class MobileNetV1(BaseModule):
    """A convolution with 32 channels, then 13 depthwise separable blocks with 64 to 1024, times ``width_multiplier``.

    The features before a ReLU that OFD uses are the outputs of the last BatchNorm in blocks 3, 5, 11 and 13, with 128,
    256, 512 and 1024 channels: ``backbone.block3.bn2``, ``backbone.block5.bn2``, ``backbone.block11.bn2``,
    ``backbone.block13.bn2``. No ReLU works in place, so they can be tapped.

    Args:
        stem: 'imagenet' (the paper's), or 'cifar', where the first convolution and block2 have stride 1: for 32 x 32
        images the features above then have sides of 32, 16, 8 and 4. width_multiplier: the paper's alpha.
        out_indices: numbers (1 to 13) of the blocks whose outputs are returned; blocks after the last are not run.
    Shapes: (B, 3, H, W) to a tuple of maps after a ReLU, one per block in ``out_indices``: by default one, (B, 1024
        width_multiplier, H/32, W/32), H/8 and W/8 with stem 'cifar'. Detectors use blocks 5, 11 and 13, the last ones
        with strides 8, 16 and 32 (256, 512 and 1024 channels).
    Raises:
        ValueError: an unknown stem; a width_multiplier that leaves no channel; block numbers out of range or order.
    Example:
        backbone=dict(type='lckd_mm.MobileNetV1', width_multiplier=0.5)
    Source: Howard et al., MobileNets, arXiv 1704.04861, 2017. Deviation: block13 has stride 1, as in OFD's code (the
        paper's table 1 prints stride 2, but the same map size); stem 'cifar' is not the paper's; depthwise
        convolutions are initialised with torch's fan-out, which ignores groups (BatchNorm removes the scale).
    """

    def __init__(
        self,
        stem: str = 'imagenet',
        width_multiplier: float = 1.0,
        out_indices: Sequence[int] = (13,),
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg or HE_NORMAL)
        arguments.choice('MobileNetV1', 'stem', stem, ('imagenet', 'cifar'))
        width = round(32 * arguments.number('MobileNetV1', 'width_multiplier', width_multiplier, at_least=1 / 32))
        self.out_indices = tuple(out_indices)
        if not self.out_indices or list(self.out_indices) != sorted(set(self.out_indices) & set(range(1, 14))):
            raise ValueError(
                f'MobileNetV1: out_indices must be block numbers from 1 to 13, in order, got {self.out_indices}'
            )
        self.conv1 = nn.Conv2d(3, width, 3, 2 if stem == 'imagenet' else 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        for i, (full, stride) in enumerate(_BLOCKS, start=1):
            channels = round(full * width_multiplier)
            self.add_module(f'block{i}', _Block(width, channels, 1 if stem == 'cifar' and i == 2 else stride))
            width = channels
        self.out_channels = width

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.relu1(self.bn1(self.conv1(x)))
        outputs = []
        for i in range(1, self.out_indices[-1] + 1):
            x = getattr(self, f'block{i}')(x)
            if i in self.out_indices:
                outputs.append(x)
        return tuple(outputs)
