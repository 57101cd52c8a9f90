"""Distillation of detectors: feature maps, and boxes and masks of the same regions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import arguments
from ..functional.logits import binary_kd_divergence
from ..functional.shapes import mean, same_shape
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


def box_masks(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    r"""Weights of a map's cells inside and outside of boxes, so that each object and the background weigh the same.

    .. math:: f_{ij} = \max_{r \ni (i, j)} \frac{1}{H_r W_r}, \qquad
              b_{ij} = [f_{ij} = 0] \Bigm/ \sum_{kl} [f_{kl} = 0]

    A box covers the cells from the floor of its first corner to the ceiling of its second, both inclusive; H_r and
    W_r count these. Where boxes overlap, the smallest one counts.

    Args:
        boxes: ``(K, 4)``, x1, y1, x2, y2 in cells of the map; K may be 0. size: (H, W) of the map.
    Returns:
        foreground and background, ``(H, W)`` each; the background sums to 1, or is 0 if boxes cover the whole map.
    Source: Yang et al., Focal and Global Knowledge Distillation for Detectors (FGD), CVPR 2022, section 3.1; the cells
        of a box are those of the authors' code. Deviation: none.
    """
    rows, columns = (torch.arange(n, device=boxes.device) for n in size)
    (x1, y1), (x2, y2) = boxes[:, :2].floor().unbind(1), boxes[:, 2:].ceil().unbind(1)
    in_rows = (rows >= y1[:, None]) & (rows <= y2[:, None])
    in_columns = (columns >= x1[:, None]) & (columns <= x2[:, None])
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    weights = inside / ((y2 - y1 + 1) * (x2 - x1 + 1))[:, None, None]
    # Zeros are appended so that the maximum exists without boxes.
    foreground = torch.cat([weights, weights.new_zeros(1, *size)]).amax(0)
    background = (foreground == 0).to(foreground.dtype)
    return foreground, background / background.sum().clamp(min=1)


def absolute_attention(x: Tensor, temperature: float = 0.5) -> tuple[Tensor, Tensor]:
    """Attentions over positions ``(B, H, W)`` and over channels ``(B, C)`` of a map, with mean 1 each."""
    size = x.abs()
    spatial = (size.mean(1).flatten(1) / temperature).softmax(1) * x.shape[2:].numel()
    channel = (size.mean((2, 3)) / temperature).softmax(1) * x.shape[1]
    return spatial.unflatten(1, x.shape[2:]), channel


def focal_distances(
    student: Tensor, teacher: Tensor, foreground: Tensor, background: Tensor, temperature: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """The distances on objects and on the background, and that of the attentions, each a scalar.

    Args:
        student, teacher: ``(B, C, H, W)``. foreground, background: ``(B, H, W)``, of :func:`box_masks`.
        temperature: temperature of the attentions.
    """
    same_shape('FGDLoss', student, teacher)
    ours, theirs = absolute_attention(student, temperature), absolute_attention(teacher, temperature)
    spatial, channel = theirs
    distance = ((student - teacher).square() * channel[:, :, None, None]).sum(1) * spatial
    gaps = sum((a - b).abs().flatten(1).sum(1) for a, b in zip(ours, theirs))
    return (
        mean((distance * foreground).sum((1, 2))),
        mean((distance * background).sum((1, 2))),
        mean(gaps),
    )


@MODELS.register_module()
class FGDLoss(Loss):
    r"""Focal and global distillation: features on objects and on the background, attentions, and pixel relations.

    .. math:: L = \sum_{\mathrm{levels}} \alpha L_{fg} + \beta L_{bg} + \gamma L_{att}
              + \lambda \frac1B \sum_{b, c, h, w} (R_s(s) - R_t(t))^2

    where the first three are averages over the batch,

    .. math:: L_{fg} = \sum_{cij} m_{ij} \, A^{S,t}_{ij} A^{C,t}_c \, (s - t)^2_{cij}, \qquad
              L_{att} = \sum_{ij} |A^{S,s} - A^{S,t}|_{ij} + \sum_c |A^{C,s} - A^{C,t}|_c

    .. math:: A^S = HW \; \mathrm{softmax}\Bigl(\tfrac1C \sum_c |x_c| \Bigm/ T\Bigr), \qquad
              A^C = C \; \mathrm{softmax}\Bigl(\tfrac1{HW} \sum_{ij} |x_{ij}| \Bigm/ T\Bigr)

    m weighs the positions inside the ground-truth boxes, for L_bg those outside (:func:`box_masks`). R is a
    :class:`GlobalContext`, one per net, both trained with the student. For detectors only. The defaults are the
    authors' for the five levels of RetinaNet, GFL and SOLO.

    Args:
        channels: channels of each teacher feature; a term fills them in.
        alpha, beta, gamma, lam: weights of the objects, the background, the attentions and the relations. The authors'
            for two-stage detectors, on four levels, are 5e-5, 2.5e-5, 5e-5 and 5e-7; for FCOS and RepPoints 1.6e-3,
            8e-4, 8e-4 and 8e-6.
        temperature: temperature of the attentions; the authors' for FCOS is 0.8.
    Shapes:
        student, teacher: lists of maps (B, C_i, H_i, W_i) of equal shapes; a connector maps the student's.
        data_samples: mmdet's, with ``gt_instances.bboxes`` in pixels of the batch's padded images.
    Returns:
        A scalar.
    Raises:
        ValueError: shapes, channels or counts that differ; a weight below 0; a temperature not above 0; samples
            without ground-truth boxes.
    Example:
        loss_fgd=dict(loss=dict(type='lckd_mm.FGDLoss'), on=['p3', 'p4', 'p5', 'p6', 'p7'])
    Source: Yang et al., Focal and Global Knowledge Distillation for Detectors (FGD), CVPR 2022, section 3; the authors'
        configs for the weights. Deviation: boxes are scaled by the padded image's size, since the map covers the
        padding (the authors' code uses the unpadded size); where widths differ, their code has a convolution without
        BatchNorm.
    """

    joint = True
    takes = ('map',)

    def __init__(
        self,
        channels: Sequence[int],
        alpha: float = 1e-3,
        beta: float = 5e-4,
        gamma: float = 5e-4,
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


@MODELS.register_module()
class RegionBoxLoss(Loss):
    r"""L1 distance of what both nets' RoI heads predict for the boxes of the same regions, weighted by the teacher.

    .. math:: L = \frac{\sum_{i, c} p^T_{ic} \, \lVert \Delta^S_{ic} - \Delta^T_{ic} \rVert_1}
              {\max\bigl(1, \sum_{i, c} p^T_{ic}\bigr)}

    over regions i and classes c without the background. :math:`\Delta` are offsets from the region, in units of the
    student's head: a teacher's with other means or standard deviations, as of another stage of a cascade, is converted.
    Offsets that all classes share have the weight :math:`1 - p^T_{i, \mathrm{background}}`. Weights have no gradient.

    Args of its term: ``regions=True`` and ``given=dict(scores=TAP)``, the class scores of the same head.
    Shapes:
        student, teacher: (N, 4 C), or (N, 4) where all classes share them, of ``roi_head.bbox_head.fc_reg``.
        scores: (N, C + 1) of the teacher, before the softmax, the background last.
    Returns:
        A scalar, in standard deviations of the student's offsets.
    Raises:
        ValueError: only one of the heads predicts offsets for each class, or the box coder of a head has no means and
            standard deviations.
    Example:
        loss_boxes=dict(
            loss=dict(type='lckd_mm.RegionBoxLoss'),
            on='offsets',  # offsets='roi_head.bbox_head.fc_reg'
            given=dict(scores='scores'),  # scores='roi_head.bbox_head.fc_cls'
            regions=True,
        )
    Source: a form of ours, weighted as CrossKD weighs boxes of dense heads. Chen et al., NeurIPS 2017, who distilled
        two-stage detectors first, compare both nets with the ground truth instead.
    """

    takes = ('vector',)

    def __init__(self) -> None:
        super().__init__()
        self._coders: dict[str, tuple[list[float], list[float]]] = {}

    def read_head(self, head: nn.Module | None) -> None:
        self._read('student', head)

    def read_teacher_head(self, head: nn.Module | None) -> None:
        self._read('teacher', head)

    def _read(self, role: str, head: nn.Module | None) -> None:
        coder = getattr(head, 'bbox_coder', None)
        if coder is None:
            return
        if not (hasattr(coder, 'means') and hasattr(coder, 'stds')):
            raise ValueError(
                f"RegionBoxLoss: the {role}'s {type(coder).__name__} gives no offsets with means and standard "
                'deviations; compare class scores alone'
            )
        self._coders[role] = list(coder.means), list(coder.stds)

    def forward(self, student: Tensor, teacher: Tensor, scores: Tensor) -> Tensor:
        same_shape('RegionBoxLoss', student, teacher, 'both heads need the same reg_class_agnostic and classes')
        ours, theirs = (x.unflatten(1, (-1, 4)) for x in (student, teacher))
        classes = ours.shape[1]
        if len(scores) != len(ours) or classes not in (1, scores.shape[1] - 1):
            raise ValueError(
                f'RegionBoxLoss: offsets {tuple(student.shape)} do not belong to class scores {tuple(scores.shape)}; '
                'give those of the same head'
            )
        if len(self._coders) == 2:
            (mean, std), (from_mean, from_std) = (
                map(ours.new_tensor, self._coders[role]) for role in ('student', 'teacher')
            )
            theirs = (theirs * from_std + from_mean - mean) / std
        p = scores.softmax(1)
        weights = p[:, :-1] if classes > 1 else 1 - p[:, -1:]
        distance = (ours - theirs).abs().sum(-1)
        return (distance * weights).sum() / weights.sum().clamp(min=1)


@MODELS.register_module()
class RegionMaskLoss(Loss):
    r"""How far the masks of both nets' RoI heads differ, for the same regions and the classes of their objects.

    .. math:: L = \frac{1}{N h w} \sum_{i, p} D(z^S_{i c_i p}, z^T_{i c_i p}), \qquad
              D(s, t) = \mathrm{KL}\bigl(\mathrm{Bernoulli}(\mathrm{sigmoid}(t)) \,\|\,
              \mathrm{Bernoulli}(\mathrm{sigmoid}(s))\bigr)

    over the regions i that the student samples around objects, with their classes c, and the h x w positions p. A head
    with one mask for all classes has c = 0.

    Args of its term: ``regions=True``.
    Shapes:
        student, teacher: (N, C, h, w), of ``roi_head.mask_head.conv_logits``. region_labels: (N,), which the term
        passes.
    Returns:
        A scalar, in nats a position; 0 without an object.
    Raises:
        ValueError: the heads have masks of other sizes, or of other numbers of classes.
    Example:
        loss_masks=dict(
            loss=dict(type='lckd_mm.RegionMaskLoss'),
            on='masks',  # masks='roi_head.mask_head.conv_logits'
            regions=True,
        )
    Source: a form of ours: KD of a sigmoid where Mask R-CNN's own loss looks, at the true class alone.
    """

    takes = ('map',)
    of_classes = True

    def forward(self, student: Tensor, teacher: Tensor, region_labels: Tensor) -> Tensor:
        same_shape('RegionMaskLoss', student, teacher, 'both heads need masks of the same size, and the same classes')
        rows = torch.arange(len(student), device=student.device)
        ours, theirs = (x[rows, region_labels, None] for x in (student, teacher))
        return mean(binary_kd_divergence(ours, theirs))
