"""Distillation from a part of the information in the teacher's class scores."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import arguments
from ..functional import partial_target, row_similarities, target_divergence
from ..functional.logits import PARTIAL_KINDS, SAME_CLASSES
from ..functional.shapes import mean, same_shape
from ..registry import MODELS
from .logits import ScoreLoss, masked_mean, refuse_without_target


@MODELS.register_module()
class PartialKDLoss(ScoreLoss):
    r"""KL divergence of the student's softened scores from a target that keeps part of the teacher's information.

    .. math:: L = s \, \mathrm{KL}(\rho \,\|\, \tilde q), \qquad \tilde q = \mathrm{softmax}(z^S / \tau)

    averaged over samples and positions. :math:`\rho` is :func:`~lckd_mm.functional.partial_target`;
    :math:`s = \tau^2` as in :class:`KDLoss`, or 1 with ``tau_squared=False`` as in the paper. For the paper's
    :math:`(1 - \lambda) H(y, q) + \lambda H(\rho, \tilde q)`, give the term the weight :math:`\lambda` and the
    student's head the ``loss_weight`` :math:`1 - \lambda`; the gradient with respect to the logits is then
    :math:`(1 - \lambda) (q - y) + \lambda \, (s / \tau) (\tilde q - \rho)`.

    Args:
        kind: 'full' (:class:`KDLoss` itself), 'pt', 'topk', 'sim', 'rel' or 'label_smoothing'.
        tau: temperature of student and teacher; 1 for ordinary label smoothing.
        tau_squared: whether the divergence is multiplied by tau squared.
        k: for 'topk': a number of classes as an integer, or a fraction of them as a float below 1 (the paper's best: a
            quarter on CIFAR-100, half on ImageNet).
        alpha, beta: for 'sim' (:func:`~lckd_mm.functional.row_similarities`); unverified defaults. The rows are those
            of the weight at the teacher's tap, a linear layer or a convolution.
        superclasses: for 'rel': the index of each class's super-class, such as CIFAR-100's coarse labels.
        betas: for 'rel': the probability of the true class, and of each other class in its super-class; the other
            classes share the rest. Unverified defaults.
        epsilon: for 'label_smoothing': the probability that is spread over the classes.
        ignore_index: label of positions to ignore in segmentation.
    Shapes:
        student, teacher: (N, C), or (N, C, H, W) with segmentation labels, which are resized by nearest neighbour.
    Returns:
        A scalar, in nats; times tau squared with ``tau_squared``.
    Raises:
        ValueError: an unknown kind; values out of range; shapes that differ; a sigmoid or detection head; samples
            with no or several class labels (on classifiers 'full' and 'topk' need none); for 'sim', a tapped layer
            without one row of weights per class.
    Example:
        loss_kd=dict(loss=dict(type='lckd_mm.PartialKDLoss', kind='topk', k=3), on='logits')
    Source: Tang et al., Understanding and Improving Knowledge Distillation, arXiv 2002.03532. Deviation: the KL
        divergence instead of the cross-entropy; they differ by a constant, and 'full' equals KD in value, too.
    """

    takes = ('vector', 'map')

    def __init__(
        self,
        kind: str = 'full',
        tau: float = 4.0,
        tau_squared: bool = True,
        k: int | float = 0.25,
        alpha: float = 0.5,
        beta: float = 0.3,
        superclasses: Sequence[int] | None = None,
        betas: tuple[float, float] = (0.6, 0.05),
        epsilon: float = 0.1,
        ignore_index: int = 255,
    ):
        super().__init__(ignore_index)
        arguments.choice('PartialKDLoss', 'kind', kind, PARTIAL_KINDS)
        who = 'PartialKDLoss'
        for name, value in dict(tau=tau, alpha=alpha, beta=beta).items():
            arguments.number(who, name, value, above=0)
        if not (0 < k < 1 if isinstance(k, float) else arguments.integer(who, 'k', k)):
            raise ValueError(f'{who}: k is a number of classes, or a fraction of them between 0 and 1, got {k!r}')
        arguments.number(who, 'epsilon', epsilon, at_least=0, at_most=1)
        if superclasses is not None:
            arguments.integers(who, 'superclasses', superclasses, at_least=None)
        if (kind == 'rel') != (superclasses is not None):
            raise ValueError(f"{who}: superclasses are needed for kind='rel' and for no other, got kind={kind!r}")
        self.kind, self.tau, self.tau_squared, self.k = kind, tau, tau_squared, k
        self.alpha, self.beta, self.betas, self.epsilon = alpha, beta, tuple(betas), epsilon
        # Not saved: both are rebuilt from the config and the teacher.
        groups = torch.tensor(superclasses) if superclasses is not None else None
        siblings = groups[:, None] == groups if groups is not None else None
        self.register_buffer('siblings', siblings, persistent=False)
        self.register_buffer('similarities', None, persistent=False)
        self._superclasses, self._rows = groups, slice(None)

    def read_head(self, head: nn.Module | None) -> None:
        """Refuse sigmoid and detection heads, which have no single target class per score vector."""
        refuse_without_target(head, f'PartialKDLoss of kind {self.kind!r}')

    def keep_classes(self, student: list[int], teacher: list[int], count: int) -> None:
        super().keep_classes(student, teacher, count)
        self._rows = teacher
        if self._superclasses is not None:
            if len(self._superclasses) != count:
                raise ValueError(f'PartialKDLoss: {len(self._superclasses)} superclasses, but {count} classes')
            groups = self._superclasses[student]
            self.siblings = (groups[:, None] == groups).to(self.siblings.device)

    @torch.no_grad()
    def bind(self, layers: list[nn.Module | None], who: str) -> None:
        """Compute the class similarities from the rows of the teacher's layer at the tap."""
        if self.kind != 'sim':
            return
        weight = getattr(layers[0], 'weight', None)
        if len(layers) != 1 or not isinstance(weight, Tensor) or weight.dim() < 2:
            found = 'not the output of one layer' if layers[0] is None else f'a {type(layers[0]).__name__}'
            raise ValueError(
                f"{who}: PartialKDLoss of kind 'sim' reads the rows of the teacher's logit layer, and the tap is "
                f'{found}; tap the linear layer or convolution itself, as in head.fc'
            )
        self.similarities = row_similarities(weight.detach().float()[self._rows], self.alpha, self.beta)

    def forward(self, student: Tensor, teacher: Tensor, data_samples: list | None = None) -> Tensor:
        same_shape('PartialKDLoss', student, teacher, SAME_CLASSES)
        if self.kind in ('full', 'topk') and student.dim() == 2:
            return mean(self._scaled(student, self.soft_target(teacher, None)))
        who = f'PartialKDLoss of kind {self.kind!r}'
        student, teacher, target, valid = self.labelled_scores(student, teacher, data_samples, who)
        return masked_mean(self._scaled(student, self.soft_target(teacher, target)), valid)

    def soft_target(self, teacher: Tensor, target: Tensor | None) -> Tensor:
        """The student's target distribution, from the teacher's logits and the labels."""
        classes = teacher.shape[1]
        for name, rows in (('superclasses', self.siblings), ("teacher's rows", self.similarities)):
            if rows is not None and len(rows) != classes:
                raise ValueError(f'PartialKDLoss: {len(rows)} {name}, but {classes} classes')
        k = max(1, round(self.k * classes)) if isinstance(self.k, float) else self.k
        return partial_target(
            self.kind, teacher, target, self.tau, k, self.similarities, self.siblings, self.betas, self.epsilon
        )

    def _scaled(self, student: Tensor, soft_target: Tensor) -> Tensor:
        return target_divergence(student, soft_target, self.tau) * (self.tau**2 if self.tau_squared else 1.0)
