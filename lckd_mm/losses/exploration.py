"""Inheritance and exploration: another loss turned around, the angle of factors, and what trains an auto-encoder."""

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
    r"""Another loss turned around, so that the student moves away from the teacher.

    * ``negated``: :math:`-L`, the paper's; for losses that cannot grow without end, which say ``bounded``
      (:class:`FTLoss`, :class:`ATLoss`, :class:`FactorCosineLoss`).
    * ``saturating``: :math:`-b\,L / (b + L)`, which begins like :math:`-L` and never falls below :math:`-b`.
    * ``hinge``: :math:`\max(0, b - L)`, which stops at a distance of b.

    Args:
        loss: config of a registered loss that is 0 or above.
        form: one of the names above. bound: :math:`b`, in units of the loss; for the last two forms.
    Shapes and what it raises besides: as the loss.
    Returns:
        A scalar, in units of the loss; at most 0 but for ``hinge``.
    Raises:
        ValueError: an unknown form; ``negated`` of a loss without an upper bound; a bound missing, not above 0, or too
            many.
    Source: Huang et al., Revisiting Knowledge Distillation: An Inheritance and Exploration Framework (IE-KD), CVPR
        2021, eq. of L_exp. Deviation: the bounded forms are ours, for losses such as OFD's, whose negative has no
        minimum.
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
    r"""Angle of factors (:func:`~lckd_mm.functional.factor_cosine`), averaged over samples and layers.

    * ``inherit``: :math:`1 - \cos`, 0 where they point the same way.
    * ``explore``: :math:`|\cos|`, 0 where they are orthogonal: not to be turned around by :class:`ExploreLoss`.

    Args:
        form: one of the names above.
    Shapes:
        student, teacher: maps of the same shapes, a list or one; as for :class:`FTLoss`.
    Returns:
        A scalar, without unit: 0 to 2, or 0 to 1.
    Raises:
        ValueError: an unknown form, shapes that differ.
    Source: Huang et al., IE-KD, CVPR 2021, other forms in the authors' code. Deviation: none.
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
    """Error of the teacher's auto-encoders, which it trains along with the student; averaged over layers.

    Its term has ``teacher_connector=dict(type='lckd_mm.AutoEncoder', online=True)``, whose ``mode`` says which error.
    The student gets no gradient by it, and neither does the teacher.

    Shapes:
        raw_teacher: maps (B, C_i, H_i, W_i), one a tap, or a list of them a tap.
    Returns:
        A scalar, in units of the features, or their squares.
    Raises:
        ValueError: a term whose teacher's connectors cannot reconstruct.
    Source: IE-KD (Huang et al., CVPR 2021), where two nets that learn from each other train their auto-encoders along.
        Deviation: none known; the weights between the terms are the config's.
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
