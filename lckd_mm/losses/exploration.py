"""Inheritance and exploration (IE-KD): a reversed loss, and an auto-encoder's reconstruction."""

from typing import Any

from torch import Tensor, nn

from .. import arguments
from ..registry import MODELS, build_registered
from .base import Loss, PlainLoss


@MODELS.register_module()
class ExploreLoss(Loss):
    r"""Reverses another loss, so that the student moves away from the teacher.

    * ``negated``: :math:`-L`, the paper's; only for losses with an upper bound, marked by ``bounded``
      (:class:`FTLoss`, :class:`ATLoss`).
    * ``saturating``: :math:`-b\,L / (b + L)`; close to :math:`-L` for small L, never below :math:`-b`.
    * ``hinge``: :math:`\max(0, b - L)`; stops at a distance of b.

    Args:
        loss: config of a registered loss with values >= 0.
        form: one of the names above. bound: :math:`b`, in units of the loss; for the last two forms.
    Shapes and further errors: those of the wrapped loss.
    Returns:
        A scalar, in units of the loss; at most 0, except for ``hinge``.
    Raises:
        ValueError: an unknown form; ``negated`` on a loss without an upper bound; a bound that is missing, not above 0,
            or given for ``negated``.
    Example:
        loss_explore=dict(
            loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.ATLoss')),
            on='stage4',
            connector=dict(type='lckd_mm.ChannelPart', part='explore'),
            weight=10.0,
        )
    Source: Huang et al., Revisiting Knowledge Distillation: An Inheritance and Exploration Framework (IE-KD), CVPR
        2021, eq. of L_exp. Deviation: ``saturating`` and ``hinge`` are ours, for losses such as OFD's, whose negative
        has no minimum.
    """

    FORMS = ('negated', 'saturating', 'hinge')
    joint = True

    def __init__(self, loss: dict, form: str = 'negated', bound: float | None = None):
        super().__init__()
        arguments.choice('ExploreLoss', 'form', form, self.FORMS)
        self.wrapped = build_registered(loss, 'ExploreLoss: loss')
        name = type(self.wrapped).__name__
        if not isinstance(self.wrapped, Loss):
            self.wrapped = PlainLoss(self.wrapped)
        if form == 'negated':
            if bound is not None:
                raise ValueError("ExploreLoss: form='negated' has no bound; take form='saturating' or 'hinge'")
            if not self.wrapped.bounded:
                raise ValueError(
                    f'ExploreLoss: {name} can grow without end, so its negative has no minimum; give '
                    "form='saturating' or 'hinge' with a bound, in units of the loss"
                )
        elif bound is None:
            raise ValueError(f'ExploreLoss: form={form!r} needs a bound, in units of {name}')
        else:
            arguments.number('ExploreLoss', 'bound', bound, above=0)
        self.form, self.bound = form, bound

    def forward_arguments(self) -> dict[str, bool]:
        return self.wrapped.forward_arguments()

    @property
    def of_classes(self) -> bool:
        return self.wrapped.of_classes

    def keep_classes(self, student: list[int], teacher: list[int], count: int) -> None:
        self.wrapped.keep_classes(student, teacher, count)

    def read_head(self, head: nn.Module | None) -> None:
        self.wrapped.read_head(head)

    def read_teacher_head(self, head: nn.Module | None) -> None:
        self.wrapped.read_teacher_head(head)

    def bind_student(self, layers: list[nn.Module | None], who: str) -> None:
        self.wrapped.bind_student(layers, who)

    def bind(self, layers: list[nn.Module | None], who: str) -> None:
        self.wrapped.bind(layers, who)

    def forward(self, student: list[Tensor], teacher: list[Tensor], **extras: Any) -> Tensor:
        value = self.wrapped(student, teacher, **extras)
        if self.form == 'negated':
            return -value
        if self.form == 'saturating':
            return -self.bound * value / (self.bound + value)
        return (self.bound - value).clamp(min=0)


@MODELS.register_module()
class ReconstructionLoss(Loss):
    """Reconstruction error of the teacher's auto-encoders, averaged over layers; trains them alongside the student.

    Its term needs ``teacher_connector=dict(type='lckd_mm.AutoEncoder', online=True)``, whose ``mode`` sets the error.
    Neither student nor teacher gets a gradient from it.

    Shapes:
        raw_teacher: a map (B, C_i, H_i, W_i).
    Returns:
        A scalar, in units of the features for mode 'l1', squared for 'l2'.
    Raises:
        ValueError: a term whose teacher connectors are not online auto-encoders.
    Example:
        loss_autoencoder=dict(
            loss=dict(type='lckd_mm.ReconstructionLoss'),
            on='stage4',
            teacher_connector=dict(type='lckd_mm.AutoEncoder', online=True),
        )
    Source: IE-KD (Huang et al., CVPR 2021), where two mutually learning nets train their auto-encoders at the same
        time. Deviation: none known; the config sets the terms' relative weights.
    """

    def forward(self, student: Any, teacher: Any, raw_teacher: Tensor, teacher_connector: nn.Module | None) -> Tensor:
        if not getattr(teacher_connector, 'online', False):
            raise ValueError(
                "ReconstructionLoss: trains auto-encoders of the teacher's feature; give its term "
                "teacher_connector=dict(type='lckd_mm.AutoEncoder', online=True)"
            )
        x = raw_teacher.detach()
        return teacher_connector.error(teacher_connector.reconstruct(x), x)
