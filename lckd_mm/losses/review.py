"""Knowledge review: the teacher's stages are compared with fusions of several stages of the student."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import arguments
from ..functional.shapes import mean_square
from ..registry import MODELS
from .base import Loss, channel_pairs, check_channels


class Fusion(nn.Module):
    """Fuses a stage of the student with what the deeper stages gave: attention-based fusion (ABF).

    Args:
        in_channels: of the student's stage. width: of the fused feature. out_channels: of the teacher's stage.
        deepest: whether there is nothing deeper to fuse with.
    Shapes:
        x: (B, in_channels, H, W). deeper: (B, width, …), or None at the deepest stage. size: the teacher's. Returns the
        output (B, out_channels, *size), and the fused feature (B, width, *size) for the stage before.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, deepest: bool):
        super().__init__()
        convs = nn.Conv2d(in_channels, width, 1, bias=False), nn.Conv2d(width, out_channels, 3, padding=1, bias=False)
        for conv in convs:
            nn.init.kaiming_uniform_(conv.weight, a=1)
        self.reduce = nn.Sequential(convs[0], nn.BatchNorm2d(width))
        self.expand = nn.Sequential(convs[1], nn.BatchNorm2d(out_channels))
        self.gate = None if deepest else nn.Conv2d(2 * width, 2, 1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        x = self.reduce(x)
        if self.gate is not None:
            deeper = _nearest(deeper, x.shape[2:])
            own, other = self.gate(torch.cat([x, deeper], 1)).sigmoid().split(1, 1)
            x = own * x + other * deeper
        x = _nearest(x, size)
        return self.expand(x), x


def _nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, tuple(size), mode='nearest')


@MODELS.register_module()
class ReviewKDLoss(Loss):
    r"""Squared distance of the teacher's stages and fusions of the student's, at several scales; sum over stages.

    .. math:: L = \sum_i \frac{\sum_l w_l \, \mathrm{mean}\,\bigl(P_l(f_i) - P_l(t_i)\bigr)^2}{\sum_l w_l}, \qquad
              (f_i, r_i) = \mathrm{fuse}_i(s_i, r_{i+1})

    :math:`P_l` pools a map to its own size and to 4 x 4, 2 x 2 and 1 x 1, where that is smaller, with the weights 1,
    1/2, 1/4, … in this order. A fusion maps :math:`s_i` by a 1 x 1 convolution to ``width`` channels, adds it to the
    deeper stages' :math:`r_{i+1}` with two gates per position, resizes the sum to the teacher's map, and gives the
    teacher's channels by a 3 x 3 convolution. Fusions have BatchNorm and are trained with the student; no connector is
    needed.

    Args:
        channels, student_channels: channels of each feature of the teacher and the student; a term fills them in.
        width: channels of the fusions, at most those of the student's last feature.
    Shapes:
        student, teacher: lists of maps (B, C_i, H_i, W_i), from the finest to the deepest; sizes may differ between the
        nets. A vector (B, C), such as the pooled feature at the end, is a map of 1 x 1.
    Returns:
        A scalar, in squared units. Common weights are 1 for ResNet34 to ResNet18 on ImageNet and 5 for ResNet32x4 to
        ResNet8x4 on CIFAR-100, over the teacher's stages before their last ReLU and the pooled feature.
    Raises:
        ValueError: channels or numbers of features other than those expected; in training a single image with a feature
            of one position, since its BatchNorm needs two values (drop_last=True leaves out a last batch of one).
    Example:
        loss_review=dict(
            loss=dict(type='lckd_mm.ReviewKDLoss'), on=['stage2', 'stage3', 'stage4']
        )
    Source: Chen et al., Distilling Knowledge via Knowledge Review (ReviewKD), CVPR 2021; checked against
        ``CIFAR-100/model/reviewkd.py`` of dvlab-research/ReviewKD; weights from the configs of mdistiller. Deviation:
        maps that are not square, for which the smaller side says which scales there are. The authors raise the weight
        over the first 20 epochs on CIFAR-100: LossWeightHook(schedule='linear', by='epoch', start=0.0, end=20).
    """

    joint = True
    takes = ('map', 'vector')

    def __init__(self, channels: Sequence[int], student_channels: Sequence[int], width: int = 512):
        super().__init__()
        arguments.integer('ReviewKDLoss', 'width', width)
        pairs = channel_pairs('ReviewKDLoss', student_channels, channels)
        width = min(width, pairs[-1][0])
        self.fusions = nn.ModuleList(Fusion(a, width, b, i == len(pairs) - 1) for i, (a, b) in enumerate(pairs))

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        advice = 'leave out the connector, since this loss maps the channels itself'
        check_channels('ReviewKDLoss', [net.reduce[0].in_channels for net in self.fusions], student, advice)
        check_channels('ReviewKDLoss', [net.expand[0].out_channels for net in self.fusions], teacher)
        total, deeper = 0.0, None
        for net, s, t in reversed(list(zip(self.fusions, _maps(student), _maps(teacher)))):
            output, deeper = net(s, deeper, t.shape[2:])
            total = total + _at_scales(output, t)
        return total


def _maps(features: list[Tensor]) -> list[Tensor]:
    return [x if x.dim() == 4 else x[:, :, None, None] for x in features]


def _at_scales(student: Tensor, teacher: Tensor) -> Tensor:
    total, weights = mean_square('ReviewKDLoss', student, teacher), [1.0]
    for side in (4, 2, 1):
        if side < min(teacher.shape[2:]):
            weights.append(weights[-1] / 2)
            pooled = (F.adaptive_avg_pool2d(x, side) for x in (student, teacher))
            total = total + weights[-1] * mean_square('ReviewKDLoss', *pooled)
    return total / sum(weights)
