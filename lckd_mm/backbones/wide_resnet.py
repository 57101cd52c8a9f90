"""Wide residual networks for images of 32 x 32."""

from mmengine.model import BaseModule
from torch import Tensor, nn

from .. import arguments
from ..registry import MODELS
from .initialisation import HE_NORMAL, blocks_per_group, three_groups


class _Block(nn.Module):
    """BN - ReLU - conv3x3 - BN - ReLU - conv3x3, plus the identity or, where the width changes, a 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int, drop_rate: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.drop = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = None
        if in_channels != channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        # A shortcut with a convolution starts from the activated input, the identity from the input itself.
        carried = x if self.shortcut is None else self.shortcut(activated)
        out = self.conv2(self.drop(self.relu2(self.bn2(self.conv1(activated)))))
        return carried + out


@MODELS.register_module()
class WideResNet(BaseModule):
    """WRN-depth-widen_factor: three groups of pre-activation blocks with 16, 32, 64 times ``widen_factor`` channels.

    The features before a ReLU that OFD and LONDON use are the outputs of the BatchNorm after each group:
    ``backbone.block2.0.bn1``, ``backbone.block3.0.bn1``, ``backbone.bn1``. No ReLU works in place, so they can be
    tapped.

    Args:
        depth: 6 n + 4 layers, with n blocks per group. widen_factor: k. drop_rate: dropout rate inside the blocks.
    Shapes: (B, 3, H, W) to a tuple of one map (B, 64 k, H/4, W/4), after the last ReLU.
    Raises:
        ValueError: a depth that is not 6 n + 4.
    Example:
        backbone=dict(type='lckd_mm.WideResNet', depth=28, widen_factor=4)
    Source: Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016. Deviation: none.
    """

    def __init__(self, depth: int, widen_factor: int = 1, drop_rate: float = 0.0, init_cfg: dict | None = None):
        super().__init__(init_cfg or HE_NORMAL)
        blocks = blocks_per_group('WideResNet', depth, 6, 4)
        arguments.integer('WideResNet', 'widen_factor', widen_factor)
        widths = [16, *(16 * 2**i * widen_factor for i in range(3))]
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.block1, self.block2, self.block3 = three_groups(_Block, widths, blocks, drop_rate)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU()
        self.out_channels = widths[3]

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return (self.relu(self.bn1(x)),)
