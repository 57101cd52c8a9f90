"""Inheritance and exploration (IE-KD): a reversed loss, the angle between factors, an auto-encoder's reconstruction."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import arguments
from ..functional import factor_cosine
from ..functional.shapes import mean
from ..registry import MODELS, build_registered
from .features import weighted_layers


@MODELS.register_module()
class ExploreLoss(nn.Module):
    r"""Reverses another loss, so that the student moves away from the teacher.

    * ``negated``: :math:`-L`, the paper's; only for losses with an upper bound, marked by ``bounded``
      (:class:`FTLoss`, :class:`ATLoss`, :class:`FactorCosineLoss`).
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
    Source: Huang et al., Revisiting Knowledge Distillation: An Inheritance and Exploration Framework (IE-KD), CVPR
        2021, eq. of L_exp. Deviation: ``saturating`` and ``hinge`` are ours, for losses such as OFD's, whose negative
        has no minimum.
    """

    FORMS = ('negated', 'saturating', 'hinge')

    def __init__(self, loss: dict, form: str = 'negated', bound: float | None = None):
        super().__init__()
        arguments.choice('ExploreLoss', 'form', form, self.FORMS)
        self.wrapped = build_registered(loss, 'ExploreLoss: loss')
        name = type(self.wrapped).__name__
        if form == 'negated':
            if bound is not None:
                raise ValueError("ExploreLoss: form='negated' has no bound; take form='saturating' or 'hinge'")
            if not getattr(self.wrapped, 'bounded', False):
                raise ValueError(
                    f'ExploreLoss: {name} can grow without end, so its negative has no minimum; give '
                    "form='saturating' or 'hinge' with a bound, in units of the loss"
                )
        elif bound is None:
            raise ValueError(f'ExploreLoss: form={form!r} needs a bound, in units of {name}')
        else:
            arguments.number('ExploreLoss', 'bound', bound, above=0)
        self.form, self.bound = form, bound

    def forward(self, student: Any, teacher: Any, **extras: Any) -> Tensor:
        value = self.wrapped(student, teacher, **extras)
        if self.form == 'negated':
            return -value
        if self.form == 'saturating':
            return -self.bound * value / (self.bound + value)
        return (self.bound - value).clamp(min=0)


@MODELS.register_module()
class FactorCosineLoss(nn.Module):
    r"""Angle between factors (:func:`~lckd_mm.functional.factor_cosine`), averaged over samples and layers.

    * ``inherit``: :math:`1 - \cos`, 0 for parallel factors.
    * ``explore``: :math:`|\cos|`, 0 for orthogonal factors; do not wrap it in :class:`ExploreLoss`.

    Args:
        form: one of the names above.
    Shapes:
        student, teacher: maps of equal shapes, a list or one; as for :class:`FTLoss`.
    Returns:
        A scalar, without unit: 0 to 2 for ``inherit``, 0 to 1 for ``explore``.
    Raises:
        ValueError: an unknown form, shapes that differ.
    Source: Huang et al., IE-KD, CVPR 2021, alternative losses in the authors' code. Deviation: none.
    """

    bounded = True

    def __init__(self, form: str = 'inherit'):
        super().__init__()
        self.form = arguments.choice('FactorCosineLoss', 'form', form, ('inherit', 'explore'))

    def forward(self, student: list[Tensor] | Tensor, teacher: list[Tensor] | Tensor) -> Tensor:
        return weighted_layers('FactorCosineLoss', student, teacher, None, self._angle)

    def _angle(self, student: Tensor, teacher: Tensor) -> Tensor:
        cosine = factor_cosine(student, teacher)
        return mean(1 - cosine if self.form == 'inherit' else cosine.abs())


@MODELS.register_module()
class ReconstructionLoss(nn.Module):
    """Reconstruction error of the teacher's auto-encoders, averaged over layers; trains them alongside the student.

    Its term needs ``teacher_connector=dict(type='lckd_mm.AutoEncoder', online=True)``, whose ``mode`` sets the error.
    Neither student nor teacher gets a gradient from it.

    Shapes:
        raw_teacher: one map (B, C_i, H_i, W_i), or one list of maps, per tap.
    Returns:
        A scalar, in units of the features for mode 'l1', squared for 'l2'.
    Raises:
        ValueError: a term whose teacher connectors are not online auto-encoders.
    Source: IE-KD (Huang et al., CVPR 2021), where two mutually learning nets train their auto-encoders at the same
        time. Deviation: none known; the config sets the terms' relative weights.
    """

    def forward(
        self,
        student: Any,
        teacher: Any,
        raw_teacher: Sequence[Tensor | list[Tensor]],
        teacher_connectors: Sequence[nn.Module],
    ) -> Tensor:
        if not teacher_connectors or not all(getattr(c, 'online', False) for c in teacher_connectors):
            raise ValueError(
                "ReconstructionLoss: trains auto-encoders of the teacher's feature; give its term "
                "teacher_connector=dict(type='lckd_mm.AutoEncoder', online=True)"
            )
        errors = []
        for feature, connector in zip(raw_teacher, teacher_connectors, strict=True):
            for x in [feature] if isinstance(feature, Tensor) else feature:
                errors.append(connector.error(connector.reconstruct(x.detach()), x.detach()))
        return torch.stack(errors).mean()
