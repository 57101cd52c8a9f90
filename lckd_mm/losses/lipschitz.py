"""Lipschitz matching of consecutive feature maps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import arguments
from ..functional import lipschitz_gap, transmitting_norm, transmitting_norms
from ..functional.lipschitz import GAPS
from ..functional.shapes import as_maps, mean, mean_length
from ..registry import MODELS
from .base import Loss


@MODELS.register_module()
class LipschitzLoss(Loss):
    r"""Gap between the Lipschitz constants of student and teacher, layer by layer.

    .. math:: L = \sum_{i=0}^{n-2} w_i \, \mathrm{mean}_b \, \mathrm{gap}(\sigma_{i,b}^S, \sigma_{i,b}^T),
              \qquad w_i = 2^{-(n-1-i)}

    where :math:`\sigma_i` is the largest singular value of the transmitting matrix of taps i and i+1
    (:func:`~lckd_mm.functional.transmitting_norms`) and the gap is squared
    (:func:`~lckd_mm.functional.lipschitz_gap`).

    Args:
        gap: 'log' (the default), 'relative', or 'absolute' (the authors' code).
        layer_weights: :math:`w_i`, one per pair of consecutive taps; the default is the authors', with larger weights
            for deeper pairs.
        raw_back: the authors' code multiplies the student's *connected* map of layer i by its *raw* map of layer i+1;
            True does the same, False uses the connected map for both. Without connectors there is no difference.
        normalise: divide each map by the root mean square length of its vectors over the positions. A norm then lies
            between 0 and about 1 and does not depend on the scale of the activations.
    Shapes:
        student, teacher: lists of n >= 2 maps (B, C_i, H_i, W_i), in order of depth: taps, or the pyramid levels of one
        tap. Channels may differ between the nets, since only singular values are compared. Tokens (B, L_i, C_i) are
        read as maps with one row if all L_i are equal, else as maps with the images' aspect ratio (square without
        images).
        inputs: the images, for their aspect ratio only.
    Returns:
        A scalar; in squared units of front times back for 'absolute', otherwise without unit.
    Raises:
        ValueError: an unknown gap; fewer than two taps; a number of weights other than that
            of the pairs; other dimensions; numbers of tokens that differ and fill no grid of the images' aspect ratio.
    Example:
        loss_lipschitz=dict(
            loss=dict(type='lckd_mm.LipschitzLoss'),
            on=['stage2', 'stage3', 'stage4'], weight=0.1, connector='loss_ofd',
        )
    Source: LONDON (Shang et al., ICCV 2021), section 3.
    Deviation: the default gap is 'log', because the authors' 'absolute' depends on the scale of the activations; the
        singular value is accurate and its gradient exact, instead of 5 or 10 unrolled power steps.
    """

    joint = True
    takes = ('map', 'tokens')

    def __init__(
        self,
        gap: str = 'log',
        layer_weights: Sequence[float] | None = None,
        raw_back: bool = False,
        normalise: bool = False,
    ):
        super().__init__()
        arguments.choice('LipschitzLoss', 'gap', gap, GAPS)
        self.gap = gap
        self.layer_weights = arguments.layer_weights('LipschitzLoss', layer_weights)
        self.raw_back = arguments.boolean('LipschitzLoss', 'raw_back', raw_back)
        self.normalise = arguments.boolean('LipschitzLoss', 'normalise', normalise)

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        raw_student: list[Tensor] | None = None,
        inputs: Tensor | None = None,
    ) -> Tensor:
        if len(student) < 2:
            raise ValueError('LipschitzLoss: needs at least two taps of each net, in order of depth')
        pairs = len(student) - 1
        weights = [2.0 ** -(pairs - i) for i in range(pairs)] if self.layer_weights is None else self.layer_weights
        if len(weights) != pairs:
            raise ValueError(f'LipschitzLoss: {len(weights)} layer_weights for {pairs} pairs of consecutive taps')
        aspect = 1.0 if inputs is None else inputs.shape[2] / inputs.shape[3]
        student, teacher = as_maps(student, aspect), as_maps(teacher, aspect)
        with torch.no_grad():
            targets = self._norms(teacher, teacher)
        backs = as_maps(raw_student, aspect) if self.raw_back and raw_student is not None else student
        norms = self._norms(student, backs)
        gaps = (mean(lipschitz_gap(s, t, self.gap)) for s, t in zip(norms, targets))
        return sum(weight * gap for weight, gap in zip(weights, gaps))

    def _norms(self, fronts: list[Tensor], backs: list[Tensor]) -> list[Tensor]:
        """Norm for each front map and the back map after it; both lists are the same unless ``raw_back``."""
        if fronts is backs:
            norms = list(transmitting_norms(fronts))
        else:
            norms = [transmitting_norm(front, back) for front, back in zip(fronts, backs[1:])]
        if not self.normalise:
            return norms
        lengths = [(mean_length(front), mean_length(back)) for front, back in zip(fronts, backs[1:])]
        return [norm / (front * back) for norm, (front, back) in zip(norms, lengths)]


@MODELS.register_module()
class LONDONLoss(LipschitzLoss):
    r"""The authors' setting of :class:`LipschitzLoss`: absolute gaps, and the student's connected map times the next
    raw one.

    .. math:: L = \sum_{i=0}^{n-2} 2^{-(n-1-i)} \, \mathrm{mean}_b \, (\sigma_{i,b}^S - \sigma_{i,b}^T)^2

    It takes no arguments. The authors' weight is :math:`\alpha / 200` on CIFAR-100.
    Shapes, Returns, Raises: those of :class:`LipschitzLoss`; the value is in squared units of front times back.
    Example:
        loss_lipschitz=dict(
            loss=dict(type='lckd_mm.LONDONLoss'),
            on=['stage2', 'stage3', 'stage4'], weight=0.005, connector='loss_ofd',
        )
    Source: LONDON (Shang et al., ICCV 2021), the authors' later code.
    Deviation: the singular value is accurate and its gradient exact, instead of 5 or 10 unrolled power steps.
    """

    def __init__(self):
        super().__init__(gap='absolute', raw_back=True)
