"""Lipschitz matching of consecutive feature maps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..functional import lipschitz_gap, transmitting_norm, transmitting_norms
from ..functional.lipschitz import GAPS
from ..registry import MODELS


@MODELS.register_module()
class LipschitzLoss(nn.Module):
    r"""Gap between the Lipschitz constants of student and teacher, layer by layer.

    .. math:: L = \sum_{i=0}^{n-2} w_i \, \mathrm{mean}_b \, \mathrm{gap}(\sigma_{i,b}^S, \sigma_{i,b}^T),
              \qquad w_i = 2^{-(n-1-i)}

    with :math:`\sigma_i` the largest singular value of the transmitting matrix of taps i and i+1
    (:func:`~lckd_mm.functional.transmitting_norms`) and the gap squared
    (:func:`~lckd_mm.functional.lipschitz_gap`).

    Args:
        gap: 'log' (the default), 'relative', or 'absolute' (the authors' code).
        layer_weights: :math:`w_i`, one a pair of consecutive taps; by default the authors', by which deeper pairs
            weigh more.
        raw_back: the authors' code multiplies the *connected* map of layer i with the *raw* map of layer i+1 on the
            student's side; True does the same, False connects both factors. Without connectors both are the same.
    Shapes:
        student, teacher: n >= 2 maps (B, C_i, H_i, W_i) each, in order of depth. Channels may differ between the
        nets, since only singular values are compared.
    Returns:
        A scalar; in squared units of front times back for 'absolute', without unit else.
    Raises:
        ValueError: unknown gap; fewer than two taps; a count of taps or weights that does not fit.
    Source: LONDON (Shang et al., ICCV 2021), section 3.
    Deviation: the default gap is 'log', not the authors' 'absolute', whose size depends on the scale of the
        activations; the singular value is accurate and its gradient exact, in place of 5 or 10 unrolled power steps.
    """

    def __init__(self, gap: str = 'log', layer_weights: Sequence[float] | None = None, raw_back: bool = False):
        super().__init__()
        if gap not in GAPS:
            raise ValueError(f'LipschitzLoss: unknown gap {gap!r}, expected one of {", ".join(GAPS)}')
        self.gap = gap
        self.layer_weights = None if layer_weights is None else tuple(map(float, layer_weights))
        self.raw_back = raw_back

    def forward(self, student: list[Tensor], teacher: list[Tensor], raw_student: list[Tensor] | None = None) -> Tensor:
        if not isinstance(student, (list, tuple)) or len(student) < 2:
            raise ValueError('LipschitzLoss: needs at least two taps of each net, in order of depth')
        if len(student) != len(teacher):
            raise ValueError(f'LipschitzLoss: {len(student)} student taps, but {len(teacher)} teacher taps')
        pairs = len(student) - 1
        weights = [2.0 ** -(pairs - i) for i in range(pairs)] if self.layer_weights is None else self.layer_weights
        if len(weights) != pairs:
            raise ValueError(f'LipschitzLoss: {len(weights)} layer_weights for {pairs} pairs of consecutive taps')
        with torch.no_grad():
            targets = transmitting_norms(teacher)
        if self.raw_back and raw_student is not None:
            norms = [transmitting_norm(front, back) for front, back in zip(student, raw_student[1:])]
        else:
            norms = transmitting_norms(student)
        gaps = (lipschitz_gap(s, t, self.gap).mean() for s, t in zip(norms, targets))
        return sum(weight * gap for weight, gap in zip(weights, gaps))
