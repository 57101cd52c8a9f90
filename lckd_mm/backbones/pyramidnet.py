"""Pyramidal residual networks for images of 32 x 32."""

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from .. import arguments
from ..registry import MODELS
from .initialisation import HE_NORMAL, blocks_per_group


class _Block(nn.Module):
    """BN - conv3x3 - BN - ReLU - conv3x3 - BN, plus the input padded with zero channels."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.pool = _halving(stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.bn1(x))
        out = self.bn3(self.conv2(self.relu2(self.bn2(out))))
        return _padded(self.pool(x), out.shape[1]) + out


class _Bottleneck(nn.Module):
    """BN - conv1x1 - BN - ReLU - conv3x3 - BN - ReLU - conv1x1 (4 ``channels``) - BN, plus the zero-padded input."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu3 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, self.expansion * channels, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(self.expansion * channels)
        self.pool = _halving(stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(out)))
        out = self.bn4(self.conv3(self.relu3(self.bn3(out))))
        return _padded(self.pool(x), out.shape[1]) + out


def _halving(stride: int) -> nn.Module:
    # ceil_mode: odd sides round up, as in the strided convolution.
    return nn.Identity() if stride == 1 else nn.AvgPool2d(stride, ceil_mode=True)


def _padded(x: Tensor, channels: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))


@MODELS.register_module()
class PyramidNet(BaseModule):
    """PyramidNet-depth(alpha): three groups, in which every block is a little wider than the previous one.

    Block k of N has ``round(16 + alpha * k / N)`` channels, with ``bottleneck`` four times as many at its output.

    OFD and LONDON use the output of the first BatchNorm after each group: ``backbone.layer2.0.bn1``,
    ``backbone.layer3.0.bn1``, ``backbone.bn_final``. With ``bottleneck`` they use the first BatchNorm before a ReLU:
    ``backbone.layer2.0.bn2``, ``backbone.layer3.0.bn2``, ``backbone.bn_final``. No ReLU follows ``bn1``, and none works
    in place, so all can be tapped.

    Args:
        depth: 6 n + 2 layers, or 9 n + 2 with ``bottleneck``, with n blocks per group. alpha: channels of the last
        block minus those of the first convolution. bottleneck: blocks of 1x1, 3x3 and 1x1 instead of two 3x3.
    Shapes: (B, 3, H, W) to a tuple of one map (B, 16 + alpha, H/4, W/4), after the last ReLU; 4 (16 + alpha) channels
        with ``bottleneck``.
    Raises:
        ValueError: a depth that is not 6 n + 2 (9 n + 2), a negative alpha.
    Example:
        backbone=dict(type='lckd_mm.PyramidNet', depth=200, alpha=240, bottleneck=True)
    Source: Han, Kim and Kim, Deep Pyramidal Residual Networks, CVPR 2017. Deviation: widths are rounded to the nearest
        integer, not down as in the paper, because this gives the parameter counts of OFD's table; a shortcut that
        halves the map averages 2 x 2 pixels, as in OFD's code.
    """

    def __init__(self, depth: int, alpha: float, bottleneck: bool = False, init_cfg: dict | None = None):
        super().__init__(init_cfg or HE_NORMAL)
        arguments.number('PyramidNet', 'alpha', alpha, at_least=0)
        block, layers = (_Bottleneck, 9) if bottleneck else (_Block, 6)
        blocks = blocks_per_group(f'PyramidNet with bottleneck={bottleneck}', depth, layers, 2)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        width = 16
        for i in range(3):
            group = []
            for n in range(blocks):
                channels = round(16 + alpha * (i * blocks + n + 1) / (3 * blocks))
                group.append(block(width, channels, 2 if i and n == 0 else 1))
                width = block.expansion * channels
            self.add_module(f'layer{i + 1}', nn.Sequential(*group))
        self.bn_final = nn.BatchNorm2d(width)
        self.relu_final = nn.ReLU()
        self.out_channels = width

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)))))
        return (self.relu_final(self.bn_final(x)),)
