"""Distillation of detectors' feature maps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import arguments
from ..functional import box_masks, focal_distances
from ..functional.shapes import mean
from ..hosts import relative_boxes
from ..registry import MODELS
from .base import Loss, check_channels


class GlobalContext(nn.Module):
    r"""Adds the same context vector at every position of a map.

    .. math:: R(x) = x + W_2 \, \mathrm{relu}\bigl(\mathrm{LN}(W_1 \textstyle\sum_j \mathrm{softmax}(w_k x)_j x_j)\bigr)

    Args:
        channels: C of the map; W_1 has half as many rows. W_2 is initialised to 0, so R(x) = x at the start.
    Shapes: (B, C, H, W) to the same.
    Source: the block of Cao et al., GCNet, 2019, as used in FGD. Deviation: the scores have no bias, because softmax
        cancels it.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = max(1, channels // 2)
        self.score = nn.Conv2d(channels, 1, 1, bias=False)
        self.transform = nn.Sequential(
            nn.Linear(channels, inner), nn.LayerNorm(inner), nn.ReLU(), nn.Linear(inner, channels)
        )
        nn.init.kaiming_normal_(self.score.weight, mode='fan_in', nonlinearity='relu')
        nn.init.zeros_(self.transform[-1].weight)
        nn.init.zeros_(self.transform[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        context = torch.einsum('bcn,bn->bc', x.flatten(2), self.score(x).flatten(1).softmax(1))
        return x + self.transform(context)[:, :, None, None]


@MODELS.register_module()
class FGDLoss(Loss):
    r"""Focal and global distillation: features on objects and on the background, attentions, and pixel relations.

    .. math:: L = \sum_{\mathrm{levels}} \alpha L_{fg} + \beta L_{bg} + \gamma L_{att}
              + \lambda \frac1B \sum_{b, c, h, w} (R_s(s) - R_t(t))^2

    The first three terms are those of :func:`~lckd_mm.functional.focal_distances`; the ground-truth boxes mark the
    objects (:func:`~lckd_mm.functional.box_masks`). R is a :class:`GlobalContext`, one per net, both trained with the
    student. For detectors only. The defaults are those of the authors' code, chosen for RetinaNet's pyramid levels.

    Args:
        channels: channels of each teacher feature; a term fills them in.
        alpha, beta, gamma, lam: weights of the objects, the background, the attentions and the relations.
        temperature: temperature of the attentions.
    Shapes:
        student, teacher: lists of maps (B, C_i, H_i, W_i) of equal shapes; a connector maps the student's.
        data_samples: mmdet's, with ``gt_instances.bboxes`` in pixels of the batch's padded images.
    Returns:
        A scalar.
    Raises:
        ValueError: shapes, channels or counts that differ; a weight below 0; a temperature not above 0; samples
            without ground-truth boxes.
    Source: Yang et al., Focal and Global Knowledge Distillation for Detectors (FGD), CVPR 2022, section 3; the authors'
        code for the defaults. Deviation: boxes are scaled by the padded image's size, since the map covers the padding
        (the authors' code uses the unpadded size); where widths differ, their code has a convolution without BatchNorm.
    """

    joint = True

    def __init__(
        self,
        channels: Sequence[int],
        alpha: float = 1e-3,
        beta: float = 5e-4,
        gamma: float = 1e-3,
        lam: float = 5e-6,
        temperature: float = 0.5,
    ):
        super().__init__()
        for name, weight in dict(alpha=alpha, beta=beta, gamma=gamma, lam=lam).items():
            arguments.number('FGDLoss', name, weight, at_least=0)
        arguments.number('FGDLoss', 'temperature', temperature, above=0)
        arguments.integers('FGDLoss', 'channels', channels)
        self.alpha, self.beta, self.gamma, self.lam, self.temperature = alpha, beta, gamma, lam, temperature
        self.student_contexts = nn.ModuleList(map(GlobalContext, channels))
        self.teacher_contexts = nn.ModuleList(map(GlobalContext, channels))

    def forward(self, student: list[Tensor], teacher: list[Tensor], data_samples: list | None = None) -> Tensor:
        check_channels('FGDLoss', [context.score.in_channels for context in self.teacher_contexts], teacher)
        boxes = relative_boxes(data_samples, student[0])
        total = 0.0
        for s, t, ours, theirs in zip(student, teacher, self.student_contexts, self.teacher_contexts):
            height, width = t.shape[2:]
            scale = t.new_tensor([width, height, width, height])
            foreground, background = zip(*(box_masks(b * scale, (height, width)) for b in boxes))
            parts = focal_distances(s, t, torch.stack(foreground), torch.stack(background), self.temperature)
            relations = mean((ours(s) - theirs(t)).square().flatten(1).sum(1))
            weights = self.alpha, self.beta, self.gamma, self.lam
            total = total + sum(w * part for w, part in zip(weights, (*parts, relations)))
        return total
