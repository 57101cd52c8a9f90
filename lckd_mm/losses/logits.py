"""Distillation of class scores."""

import torch
from torch import Tensor, nn

from .. import arguments
from ..functional import binary_kd_divergence, decoupled_kd, kd_divergence
from ..hosts import class_targets, has_sigmoids, resized_labels
from ..registry import MODELS

_ACTIVATIONS = ('softmax', 'sigmoid')


@MODELS.register_module()
class KDLoss(nn.Module):
    r"""Divergence of softened class scores, averaged over samples and positions.

    Softmax heads get :func:`~lckd_mm.functional.kd_divergence`, sigmoid heads
    :func:`~lckd_mm.functional.binary_kd_divergence`. Positions whose label is ``ignore_index`` (segmentation; the
    label map is resized to the logits by nearest neighbour) are left out.

    Args:
        tau: temperature.
        activation: 'softmax', 'sigmoid', or None: the tapped head's own.
        num_classes: scores of one anchor, background included where the head has one; None: the tapped head's own.
            Needed where the channels hold several anchors.
        ignore_index: of segmentation labels.
    Shapes:
        student, teacher: (N, C), (N, C, H, W), or (N, A*C, H, W) for a detection head with A anchors a position,
        read as (N, H, W, A, C); or a list of these, one a pyramid level, averaged over all positions together.
    Returns:
        A scalar, in nats times tau squared.
    Raises:
        ValueError: shapes that differ, channels that are no multiple of ``num_classes``, temperature not above 0.
    Source: Hinton, Vinyals, Dean 2015. Deviation: the mean over positions and the binary form are extensions. Each rank
        takes the mean over its own positions, so that where ignored ones are unequally spread over the ranks, a
        position of one weighs more than one of another.
    """

    def __init__(
        self,
        tau: float = 4.0,
        activation: str | None = None,
        num_classes: int | None = None,
        ignore_index: int = 255,
    ):
        super().__init__()
        arguments.scale('KDLoss', 'temperature tau', tau)
        if activation is not None:
            arguments.choice('KDLoss', 'activation', activation, _ACTIVATIONS)
        if num_classes is not None:
            arguments.whole('KDLoss', 'num_classes', num_classes)
        arguments.whole('KDLoss', 'ignore_index', ignore_index, at_least=None)
        self.tau, self.activation, self.ignore_index = tau, activation, ignore_index
        # Not `num_classes`: mmdet's NumClassCheckHook takes each module with that for a head without a background.
        self.scores = num_classes

    def adapt(self, head: nn.Module | None) -> None:
        """Take what was left open from the host's head that owns the student's tap."""
        if self.activation is None:
            self.activation = 'sigmoid' if has_sigmoids(head) else 'softmax'
        if self.scores is None:
            self.scores = getattr(head, 'cls_out_channels', None)

    def forward(
        self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor], data_samples: list | None = None
    ) -> Tensor:
        students = [student] if isinstance(student, Tensor) else list(student)
        teachers = [teacher] if isinstance(teacher, Tensor) else list(teacher)
        if len(students) != len(teachers):
            raise ValueError(f'KDLoss: {len(students)} student logits, but {len(teachers)} teacher logits')
        divergence = binary_kd_divergence if self.activation == 'sigmoid' else kd_divergence
        total, count = 0.0, 0
        for z_student, z_teacher in zip(students, teachers, strict=True):
            z_student, z_teacher = self._split_anchors(z_student), self._split_anchors(z_teacher)
            valid = self._valid(z_student, data_samples)
            if valid is not None:
                # The scores and not the divergence: infinity at an ignored position would give nan in backward.
                z_student, z_teacher = (torch.where(valid[:, None], z, 0) for z in (z_student, z_teacher))
            value = divergence(z_student, z_teacher, self.tau)
            total = total + value.sum()
            count = count + (value.numel() if valid is None else valid.sum())
        return total / (max(count, 1) if isinstance(count, int) else count.clamp(min=1))

    def _split_anchors(self, z: Tensor) -> Tensor:
        """(N, A*C, H, W) -> (N, C, A, H, W), the anchors' outer and the classes' inner, as heads lay them out."""
        classes = self.scores
        if z.dim() != 4 or classes is None or z.shape[1] == classes:
            return z
        if z.shape[1] % classes:
            raise ValueError(f'KDLoss: {z.shape[1]} channels are no multiple of num_classes={classes}')
        return z.unflatten(1, (-1, classes)).transpose(1, 2)

    def _valid(self, z: Tensor, data_samples: list | None) -> Tensor | None:
        if z.dim() != 4 or not data_samples or 'gt_sem_seg' not in data_samples[0]:
            return None
        return resized_labels(z, data_samples) != self.ignore_index


def refuse_without_target(head: nn.Module | None, who: str) -> None:
    """ValueError for heads whose scores have no softmax over classes of which one is the target."""
    name = type(head).__name__
    if has_sigmoids(head) and not hasattr(head, 'cls_out_channels'):
        raise ValueError(f'{who}: {name} has a sigmoid for each class, and no target class; use KDLoss')
    if hasattr(head, 'use_sigmoid_cls') or hasattr(head, 'cls_out_channels'):
        raise ValueError(
            f'{who}: the positions of the detection head {name} have labels only inside its own assignment, so '
            'that the target class is not known; use KDLoss'
        )


@MODELS.register_module()
class DKDLoss(nn.Module):
    r"""Decoupled divergence of softened class scores, averaged over samples and positions.

    .. math:: L = \alpha\,\mathrm{TCKD} + \beta\,\mathrm{NCKD}

    with the parts of :func:`~lckd_mm.functional.decoupled_kd`; ``alpha = 1`` and ``beta`` equal to the teacher's doubt
    :math:`1 - p^T_y` would be :class:`KDLoss`. For classification and segmentation: the positions of a detection head
    have no labels outside the head's own assignment, so that the target class is not known, and it is refused.

    Args:
        tau: temperature. alpha, beta: of the target class against the rest, and among the rest.
        ignore_index: of segmentation labels.
    Shapes:
        student, teacher: (N, C), or (N, C, H, W) with segmentation labels, which are resized by nearest neighbour.
    Returns:
        A scalar, in nats times tau squared.
    Raises:
        ValueError: shapes that differ, temperature not above 0, negative weights, a head of sigmoids or of a detector,
            samples without a label of one class.
    Source: Zhao et al., Decoupled Knowledge Distillation (DKD), CVPR 2022, eq. 7. Deviation: none for (N, C); the mean
        over positions is an extension. The authors also raise the weight linearly over the first epochs:
        LossWeightHook(schedule='linear').
    """

    def __init__(self, tau: float = 4.0, alpha: float = 1.0, beta: float = 8.0, ignore_index: int = 255):
        super().__init__()
        arguments.scale('DKDLoss', 'temperature tau', tau)
        arguments.number('DKDLoss', 'alpha', alpha, at_least=0)
        arguments.number('DKDLoss', 'beta', beta, at_least=0)
        arguments.whole('DKDLoss', 'ignore_index', ignore_index, at_least=None)
        self.tau, self.alpha, self.beta, self.ignore_index = tau, alpha, beta, ignore_index

    def adapt(self, head: nn.Module | None) -> None:
        """Refuse heads whose scores have no softmax over classes with one label."""
        refuse_without_target(head, 'DKDLoss')

    def forward(self, student: Tensor, teacher: Tensor, data_samples: list | None = None) -> Tensor:
        if not isinstance(student, Tensor):
            raise ValueError("DKDLoss: takes one tap, as in on='logits', got a list")
        target = class_targets(student, data_samples, 'DKDLoss')
        valid = target != self.ignore_index if student.dim() == 4 else torch.ones_like(target, dtype=torch.bool)
        # The scores and not the divergence: infinity at an ignored position would give nan in backward.
        student, teacher = (torch.where(valid.unsqueeze(1), z, 0) for z in (student, teacher))
        of_target, among = decoupled_kd(student, teacher, torch.where(valid, target, 0), self.tau)
        value = (self.alpha * of_target + self.beta * among) * valid
        return value.sum() / valid.sum().clamp(min=1)
