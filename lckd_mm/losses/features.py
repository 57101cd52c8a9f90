"""Distillation of feature maps."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from .. import arguments
from ..functional import (
    activation_boundary,
    attended_distance,
    attention_map,
    channel_divergence,
    factor_distance,
    partial_l2,
    transmitting_matrix,
)
from ..functional.shapes import check_rank, mean, mean_square
from ..registry import MODELS


def depth_weights(count: int) -> list[float]:
    """OFD's and LONDON's weights of layers, or pairs of layers: each is twice the previous one, the last is 1."""
    return [2.0 ** -(count - 1 - i) for i in range(count)]


def _per_sample(who: str, distances: Tensor) -> Tensor:
    """Sum over each sample's entries, mean over the batch."""
    check_rank(who, distances, 2, 'features (B, C, ...)')
    return mean(distances.flatten(1).sum(1))


def weighted_layers(
    who: str,
    student: Sequence[Tensor] | Tensor,
    teacher: Sequence[Tensor] | Tensor,
    weights: Sequence[float] | None,
    compare: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Weighted sum of ``compare`` over layers; without weights, the mean. A single tensor is one layer."""
    student, teacher = ([x] if isinstance(x, Tensor) else list(x) for x in (student, teacher))
    if len(student) != len(teacher):
        raise ValueError(f'{who}: {len(student)} student taps, but {len(teacher)} teacher taps')
    if not student:
        raise ValueError(f'{who}: needs at least one tap of each net, got none')
    if weights is None:
        weights = [1 / len(student)] * len(student)
    if len(weights) != len(student):
        raise ValueError(f'{who}: {len(weights)} layer_weights for {len(student)} layers')
    return sum(w * compare(s, t) for w, s, t in zip(weights, student, teacher))


@MODELS.register_module()
class OFDLoss(nn.Module):
    r"""Partial squared distance between features before a ReLU.

    .. math:: L = \sum_{i=0}^{n-1} w_i \frac1B \sum_{b, c, h, w} d(s_i, t_i), \qquad w_i = 2^{-(n-1-i)}

    where d is :func:`~lckd_mm.functional.partial_l2`. The student's features pass through
    :class:`~lckd_mm.connectors.ConvBN`, the teacher's through :class:`~lckd_mm.connectors.MarginReLU`.

    Args:
        layer_weights: :math:`w_i`; the authors' segmentation recipe divides by 8, 4, 2, 1, 1 and 16.
    Shapes:
        student, teacher: maps (B, C_i, H_i, W_i) of equal shapes, a list or one.
    Returns:
        A scalar, in squared units; the authors' weight is 1e-3 on CIFAR, 1e-4 on ImageNet, 1e-5 on VOC.
    Raises:
        ValueError: shapes that differ; numbers of taps or weights that do not match.
    Source: Heo et al., A Comprehensive Overhaul of Feature Distillation (OFD), ICCV 2019, eq. 3, and the authors'
        code for the weights. Deviation: none.
    """

    def __init__(self, layer_weights: Sequence[float] | None = None):
        super().__init__()
        self.layer_weights = arguments.layer_weights('OFDLoss', layer_weights)

    def forward(self, student: list[Tensor] | Tensor, teacher: list[Tensor] | Tensor) -> Tensor:
        count = 1 if isinstance(student, Tensor) else len(student)
        weights = depth_weights(count) if self.layer_weights is None else self.layer_weights
        return weighted_layers(
            'OFDLoss', student, teacher, weights, lambda s, t: _per_sample('OFDLoss', partial_l2(s, t))
        )


@MODELS.register_module()
class FitNetsLoss(nn.Module):
    r"""Mean squared distance between features, the hint loss of FitNets; averaged over layers.

    .. math:: L = \frac1n \sum_i \mathrm{mean}\,(s_i - t_i)^2

    Shapes:
        student, teacher: tensors of equal shapes, a list or one; a connector maps the student's.
    Returns:
        A scalar, in squared units.
    Raises:
        ValueError: shapes that differ.
    Source: Romero et al., FitNets, ICLR 2015, eq. 3. Deviation: the mean instead of half the sum; trained together
        with the task, not in a stage before it.
    """

    def forward(self, student: list[Tensor] | Tensor, teacher: list[Tensor] | Tensor) -> Tensor:
        return weighted_layers('FitNetsLoss', student, teacher, None, _mean_squared_distance)


def _mean_squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    if student.shape != teacher.shape:
        raise ValueError(
            f'FitNetsLoss: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape; a '
            "connector maps the student's channels (connector=dict(type='lckd_mm.ConvBN'))"
        )
    return mean_square(student, teacher)


@MODELS.register_module()
class ATLoss(nn.Module):
    r"""Squared distance between attention maps (:func:`~lckd_mm.functional.attention_map`), averaged over layers.

    .. math:: L = \frac1n \sum_i \mathrm{mean}_{b, hw} (a(s_i) - a(t_i))^2

    Shapes:
        student, teacher: maps (B, C, H_i, W_i), a list or one; channels may differ, sizes may not.
    Returns:
        A scalar, without unit; small, so a weight of 1000 is usual.
    Raises:
        ValueError: sizes that differ.
    Source: Zagoruyko and Komodakis, Attention Transfer (AT), ICLR 2017. Deviation: the mean squared distance follows
        the authors' code; their eq. 2 has the norm itself.
    """

    bounded = True  # attention maps have unit length

    def forward(self, student: list[Tensor] | Tensor, teacher: list[Tensor] | Tensor) -> Tensor:
        return weighted_layers('ATLoss', student, teacher, None, self._distance)

    @staticmethod
    def _distance(student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape[2:] != teacher.shape[2:]:
            raise ValueError(
                f'ATLoss: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in size; resize one '
                "of them (connector=dict(type='lckd_mm.MatchSize'))"
            )
        return mean_square(attention_map(student), attention_map(teacher))


@MODELS.register_module()
class FSPLoss(nn.Module):
    r"""Mean squared difference between the FSP matrices of consecutive maps, averaged over the pairs.

    .. math:: L = \frac{1}{n-1} \sum_i \mathrm{mean}\,(G^S_i - G^T_i)^2

    where G_i is the :func:`~lckd_mm.functional.transmitting_matrix` of maps i and i+1.

    Shapes:
        student, teacher: n >= 2 maps (B, C_i, H_i, W_i) each, with equal channels (use a connector if they differ).
    Returns:
        A scalar, in units of features to the fourth power.
    Raises:
        ValueError: fewer than two taps, counts or channels that differ.
    Source: Yim et al., A Gift from Knowledge Distillation, CVPR 2017, eq. 1-2. Deviation: if the two maps of a pair
        differ in size, the larger is average-pooled (the paper uses pairs of one size); trained together with the task.
    """

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        if isinstance(student, Tensor) or len(student) < 2:
            raise ValueError('FSPLoss: needs at least two taps of each net, in order of depth')
        if len(student) != len(teacher):
            raise ValueError(f'FSPLoss: {len(student)} student taps, but {len(teacher)} teacher taps')
        total = 0.0
        for s, t in zip(pairwise(student), pairwise(teacher)):
            ours, theirs = transmitting_matrix(*s), transmitting_matrix(*t)
            if ours.shape != theirs.shape:
                raise ValueError(
                    f'FSPLoss: the FSP matrices have {tuple(ours.shape[1:])} and {tuple(theirs.shape[1:])} channels; a '
                    "connector maps the student's (connector=dict(type='lckd_mm.ConvBN'))"
                )
            total = total + mean_square(ours, theirs)
        return total / (len(student) - 1)


@MODELS.register_module()
class ABLoss(nn.Module):
    r"""Hinge loss on the activation boundaries of features before a ReLU.

    .. math:: L = \sum_i w_i \frac1B \sum_{b, c, h, w} a(s_i, t_i), \qquad w_i = 2^{-(n-1-i)}

    where a is :func:`~lckd_mm.functional.activation_boundary`.

    Args:
        margin: margin of the hinge, in the features' units. layer_weights: :math:`w_i`.
    Shapes, Returns and Raises: as :class:`OFDLoss`.
    Source: Heo et al., Activation Boundaries (AB), AAAI 2019, eq. 5; the layers' weights are OFD's.
        Deviation: trained together with the task, not in a stage before it.
    """

    def __init__(self, margin: float = 1.0, layer_weights: Sequence[float] | None = None):
        super().__init__()
        self.margin = arguments.scale('ABLoss', 'margin', margin)
        self.layer_weights = arguments.layer_weights('ABLoss', layer_weights)

    def forward(self, student: list[Tensor] | Tensor, teacher: list[Tensor] | Tensor) -> Tensor:
        count = 1 if isinstance(student, Tensor) else len(student)
        weights = depth_weights(count) if self.layer_weights is None else self.layer_weights
        return weighted_layers(
            'ABLoss',
            student,
            teacher,
            weights,
            lambda s, t: _per_sample('ABLoss', activation_boundary(s, t, self.margin)),
        )


@MODELS.register_module()
class FTLoss(nn.Module):
    r"""Distance between factors (:func:`~lckd_mm.functional.factor_distance`), averaged over layers.

    :class:`~lckd_mm.connectors.Paraphraser`, trained before the first iteration, makes the teacher's factors;
    :class:`~lckd_mm.connectors.Translator` makes the student's.

    Shapes:
        student, teacher: maps of equal shapes, a list or one.
    Returns:
        A scalar, without unit; small, so weights of a few hundred are usual.
    Raises:
        ValueError: shapes that differ.
    Source: Kim, Park, Kwak, Factor Transfer (FT), NeurIPS 2018, eq. 3. Deviation: none.
    """

    bounded = True  # factors have unit length

    def forward(self, student: list[Tensor] | Tensor, teacher: list[Tensor] | Tensor) -> Tensor:
        return weighted_layers('FTLoss', student, teacher, None, factor_distance)


@MODELS.register_module()
class AFDLoss(nn.Module):
    r"""Squared distance between features, weighted by a channel attention that is trained with the student.

    .. math::
        L = \frac1n \sum_i \frac1B \sum_{b, c} \rho_{bc}(t_i) \, \mathrm{mean}_{hw}\,(s_i - t_i)^2_{bc}, \qquad
        \rho(t) = \mathrm{softmax}\bigl(W_2 \, \mathrm{relu}(W_1 \, \mathrm{mean}_{hw} |t|)\bigr)

    Args:
        channels: channels of each teacher tap; a term fills them in.
        reduction: :math:`W_1` has ``channels // reduction`` rows, at least 1.
    Shapes:
        student, teacher: maps (B, C_i, H_i, W_i) of equal shapes, a list or one; a connector maps the student's.
    Returns:
        A scalar, in squared units.
    Raises:
        ValueError: shapes, channels or counts that differ.
    Source: Wang et al., Attentive Feature Distillation (AFD), ICLR 2020. Deviation: the attention has two layers and
        biases, and starts uniform over the channels.
    """

    def __init__(self, channels: Sequence[int], reduction: int = 4):
        super().__init__()
        arguments.whole('AFDLoss', 'reduction', reduction)
        self.attentions = nn.ModuleList()
        for count in arguments.listed('AFDLoss', 'channels', channels, 'whole numbers'):
            arguments.channels('AFDLoss', 'channels', count)
            inner = max(1, count // reduction)
            self.attentions.append(nn.Sequential(nn.Linear(count, inner), nn.ReLU(), nn.Linear(inner, count)))
            nn.init.zeros_(self.attentions[-1][-1].weight)
            nn.init.zeros_(self.attentions[-1][-1].bias)

    def forward(self, student: list[Tensor] | Tensor, teacher: list[Tensor] | Tensor) -> Tensor:
        attentions = iter(self.attentions)

        def distance(s: Tensor, t: Tensor) -> Tensor:
            net = next(attentions, None)
            if net is None or t.dim() < 3 or t.shape[1] != net[0].in_features:
                raise ValueError(
                    f'AFDLoss: expected maps of {[a[0].in_features for a in self.attentions]} channels, got '
                    f'{tuple(t.shape)}'
                )
            return attended_distance(s, t, net(t.abs().flatten(2).mean(2)).softmax(1))

        return weighted_layers('AFDLoss', student, teacher, None, distance)


@MODELS.register_module()
class CWDLoss(nn.Module):
    r"""KL divergence of each channel's softmax over positions, averaged over channels, samples and layers.

    .. math:: L = \frac1n \sum_i \mathrm{mean}_{b,c}\, d(s_i, t_i)

    where d is :func:`~lckd_mm.functional.channel_divergence`. On class scores a channel is a class; on features, a
    connector maps the student's channels.

    Args:
        tau: temperature.
    Shapes:
        student, teacher: maps (B, C, H, W) of equal shapes, a list or one.
    Returns:
        A scalar, in nats times tau squared.
    Raises:
        ValueError: shapes that differ, features without positions, a temperature that is not above 0.
    Source: Shu et al., Channel-wise Knowledge Distillation (CWD), ICCV 2021, eq. 5. Deviation: none.
    """

    def __init__(self, tau: float = 4.0):
        super().__init__()
        self.tau = arguments.scale('CWDLoss', 'temperature tau', tau)

    def forward(self, student: list[Tensor] | Tensor, teacher: list[Tensor] | Tensor) -> Tensor:
        return weighted_layers('CWDLoss', student, teacher, None, self._divergence)

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.dim() < 3 or student.shape[2:].numel() < 2:
            raise ValueError(
                f'CWDLoss: compares where channels are active, and {tuple(student.shape)} has no positions'
            )
        return mean(channel_divergence(student, teacher, self.tau))
