"""Residual networks for images of 32 x 32."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from .. import arguments
from ..registry import MODELS
from .initialisation import HE_NORMAL, blocks_per_group, three_groups


class _PaddedShortcut(nn.Module):
    """The input at every ``stride``-th pixel, padded with zero channels."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.added, self.stride = channels - in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))


class _Block(nn.Module):
    """conv3x3 - BN - ReLU - conv3x3 - BN, plus the identity or, where the shape changes, a shortcut, then ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = None
        if in_channels != channels or stride != 1:
            if shortcut == 'A':
                self.shortcut = _PaddedShortcut(in_channels, channels, stride)
            else:
                conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
                self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))
        # A module, so that the sum before the ReLU can be tapped by name.
        self.sum = nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        carried = x if self.shortcut is None else self.shortcut(x)
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.sum(carried + out))


@MODELS.register_module()
class CifarResNet(BaseModule):
    """ResNet-depth: three groups of post-activation blocks (two 3x3 convolutions), with 16, 32 and 64 channels.

    The features before a ReLU that OFD and LONDON use are the sums at the end of each group, outputs of ``sum`` in its
    last block: for depth 56 ``backbone.layer1.8.sum``, ``backbone.layer2.8.sum``, ``backbone.layer3.8.sum``, or
    for any depth ``backbone.layer1@preact`` and so on. The BatchNorm before each sum is ``bn2`` of the same block. No
    ReLU works in place, so they can be tapped.

    Args:
        depth: 6 n + 2 layers, with n blocks per group: 20, 32, 44, 56 or 110 in the paper. shortcut: used where the
        shape changes: 'B' for conv1x1 - BN, 'A' for the input at every second pixel, padded with zero channels.
        widths: channels of the first convolution and of the three groups; ResNet32x4 has 32, 64, 128 and 256.
    Shapes: (B, 3, H, W) to a tuple of one map (B, C, H/4, W/4), after the last ReLU; C is the last width.
    Raises:
        ValueError: a depth that is not 6 n + 2, an unknown shortcut, or not four widths.
    Example:
        backbone=dict(type='lckd_mm.CifarResNet', depth=56)
    Source: He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2. Deviation:
        shortcut 'B' by default, as in OFD's ResNet56, where the paper has 'A' for images of 32 x 32.
    """

    def __init__(
        self, depth: int, shortcut: str = 'B', init_cfg: dict | None = None, widths: Sequence[int] = (16, 16, 32, 64)
    ):
        super().__init__(init_cfg or HE_NORMAL)
        blocks = blocks_per_group('CifarResNet', depth, 6, 2)
        arguments.choice('CifarResNet', 'shortcut', shortcut, 'AB')
        if not isinstance(widths, Sequence) or len(widths) != 4 or min(widths) < 1:
            raise ValueError(f'CifarResNet: widths must be four numbers of channels, got {widths}')
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu1 = nn.ReLU()
        self.layer1, self.layer2, self.layer3 = three_groups(_Block, widths, blocks, shortcut)
        self.out_channels = widths[3]

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = self.relu1(self.bn1(self.conv1(x)))
        return (self.layer3(self.layer2(self.layer1(x))),)
