"""Distillation of feature maps."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import arguments
from ..functional import kd_divergence, standardised, transmitting_matrix
from ..functional.shapes import channels_first, check_rank, mean, mean_square, same_shape
from ..registry import MODELS
from .base import Loss, check_channels


def depth_weights(count: int) -> list[float]:
    """OFD's and LONDON's weights of layers, or pairs of layers: each is twice the previous one, the last is 1."""
    return [2.0 ** -(count - 1 - i) for i in range(count)]


def _per_sample(who: str, distances: Tensor) -> Tensor:
    """Sum over each sample's entries, mean over the batch."""
    check_rank(who, distances, 2, 'features (B, C, ...)')
    return mean(distances.flatten(1).sum(1))


class _DepthWeighted(Loss):
    """A loss of pairs whose values are added up with ``layer_weights``; by default :func:`depth_weights`."""

    def __init__(self, layer_weights: Sequence[float] | None = None):
        super().__init__()
        self.layer_weights = arguments.layer_weights(type(self).__name__, layer_weights)

    def tensor_weights(self, count: int) -> list[float]:
        weights = depth_weights(count) if self.layer_weights is None else self.layer_weights
        if len(weights) != count:
            raise ValueError(f'{type(self).__name__}: {len(weights)} layer_weights for {count} layers')
        return weights


@MODELS.register_module()
class OFDLoss(_DepthWeighted):
    r"""Partial squared distance between features before a ReLU.

    .. math:: L = \sum_{i=0}^{n-1} w_i \frac1B \sum_{b, c, h, w} d(s_i, t_i), \qquad w_i = 2^{-(n-1-i)}, \qquad
              d(s, t) = (s - t)^2 \; [s > t \ \text{or}\ t > 0]

    d is 0 where s <= t <= 0, since a ReLU makes both 0 there. The student's features pass through
    :class:`~lckd_mm.connectors.ConvBN`, the teacher's through :class:`~lckd_mm.connectors.MarginReLU`.

    Args:
        layer_weights: :math:`w_i`; the authors' segmentation recipe divides by 8, 4, 2, 1, 1 and 16.
    Shapes:
        student, teacher: maps (B, C_i, H_i, W_i) of equal shapes.
    Returns:
        A scalar, in squared units; the authors' weight is 1e-3 on CIFAR, 1e-4 on ImageNet, 1e-5 on VOC.
    Raises:
        ValueError: shapes that differ; a number of weights other than that of the pairs.
    Example:
        loss_ofd=dict(
            loss=dict(type='lckd_mm.OFDLoss'),
            on=['stage2', 'stage3', 'stage4'], weight=1e-4,
            connector=dict(type='lckd_mm.ConvBN'),
            teacher_connector=dict(type='lckd_mm.MarginReLU'),
        )
    Source: Heo et al., A Comprehensive Overhaul of Feature Distillation (OFD), ICCV 2019, eq. 3, and the authors'
        code for the weights. Deviation: none.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        same_shape('OFDLoss', student, teacher)
        return _per_sample('OFDLoss', (student - teacher).square() * ((student > teacher) | (teacher > 0)))


@MODELS.register_module()
class FitNetsLoss(Loss):
    r"""Mean squared distance between features, the hint loss of FitNets; averaged over layers.

    .. math:: L = \frac1n \sum_i \mathrm{mean}\,(s_i - t_i)^2

    Shapes:
        student, teacher: tensors of equal shapes; a connector maps the student's.
    Returns:
        A scalar, in squared units.
    Raises:
        ValueError: shapes that differ.
    Example:
        loss_fitnets=dict(
            loss=dict(type='lckd_mm.FitNetsLoss'),
            on='stage4',
            connector=dict(type='lckd_mm.ConvBN'),
        )
    Source: Romero et al., FitNets, ICLR 2015, eq. 3. Deviation: the mean instead of half the sum; trained together
        with the task, not in a stage before it.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return mean_square('FitNetsLoss', student, teacher)


@MODELS.register_module()
class ATLoss(Loss):
    r"""Squared distance between spatial attention maps of unit length, averaged over layers.

    .. math:: L = \frac1n \sum_i \mathrm{mean}_{b, hw} (a(s_i) - a(t_i))^2, \qquad
              a(x) = \mathrm{vec}\Bigl(\sum_c x_c^2\Bigr) \Bigm/ \Bigl\lVert \sum_c x_c^2 \Bigr\rVert_2

    Shapes:
        student, teacher: maps (B, C, H_i, W_i), or tokens (B, N_i, C); channels may differ, sizes may not.
    Returns:
        A scalar, without unit. The authors' weight of 1000 is for the sum over the n layers: here it is 1000 n.
    Raises:
        ValueError: sizes that differ.
    Example:
        loss_at=dict(
            loss=dict(type='lckd_mm.ATLoss'), on=['stage2', 'stage3', 'stage4'], weight=3000.0
        )
    Source: Zagoruyko and Komodakis, Attention Transfer (AT), ICLR 2017, p = 2. Deviation: the mean over layers in place
        of the sum. The mean squared distance of a layer is that of the authors' code; their eq. 2 has the norm itself.
    """

    takes = ('map', 'tokens')
    bounded = True  # attention maps have unit length

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = channels_first(student), channels_first(teacher)
        advice = '' if student.dim() == 4 else 'tap layers with as many tokens'
        same_shape('ATLoss', student[:, :1], teacher[:, :1], advice)
        return mean_square('ATLoss', _attention(student), _attention(teacher))


def _attention(x: Tensor) -> Tensor:
    return F.normalize(x.square().mean(1).flatten(1), dim=1)


@MODELS.register_module()
class FSPLoss(Loss):
    r"""Mean squared difference between the FSP matrices of consecutive maps, averaged over the pairs.

    .. math:: L = \frac{1}{n-1} \sum_i \mathrm{mean}\,(G^S_i - G^T_i)^2

    where G_i is the :func:`~lckd_mm.functional.transmitting_matrix` of maps i and i+1.

    Shapes:
        student, teacher: n >= 2 maps (B, C_i, H_i, W_i) each, with equal channels (use a connector if they differ).
    Returns:
        A scalar, in units of features to the fourth power.
    Raises:
        ValueError: fewer than two taps, channels that differ.
    Example:
        loss_fsp=dict(
            loss=dict(type='lckd_mm.FSPLoss'),
            on=['stage2', 'stage3', 'stage4'], connector=dict(type='lckd_mm.ConvBN'),
        )
    Source: Yim et al., A Gift from Knowledge Distillation, CVPR 2017, eq. 1-2. Deviation: means over the entries and
        the pairs, where the paper adds both up, with a weight for each pair; if the two maps of a pair differ in size,
        the larger is average-pooled (the paper uses pairs of one size); trained together with the task.
    """

    joint = True
    takes = ('map',)

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        if len(student) < 2:
            raise ValueError('FSPLoss: needs at least two taps of each net, in order of depth')
        total = 0.0
        for s, t in zip(pairwise(student), pairwise(teacher)):
            ours, theirs = transmitting_matrix(*s), transmitting_matrix(*t)
            advice = "connector=dict(type='lckd_mm.ConvBN') maps the channels"
            total = total + mean_square('FSPLoss: FSP matrices of', ours, theirs, advice)
        return total / (len(student) - 1)


@MODELS.register_module()
class ABLoss(_DepthWeighted):
    r"""Hinge loss on the activation boundaries of features before a ReLU.

    .. math:: L = \sum_i w_i \frac1B \sum_{b, c, h, w} a(s_i, t_i), \qquad w_i = 2^{-(n-1-i)}, \qquad
              a(s, t) = [t > 0]\,\max(0, \mu - s)^2 + [t \le 0]\,\max(0, \mu + s)^2

    Args:
        margin: :math:`\mu`, in the features' units. layer_weights: :math:`w_i`.
    Shapes and Raises: as :class:`OFDLoss`.
    Returns:
        A scalar, in squared units; the authors' weight is 3e-3 on CIFAR-10.
    Example:
        loss_ab=dict(
            loss=dict(type='lckd_mm.ABLoss'),
            on=['stage2', 'stage3', 'stage4'], connector=dict(type='lckd_mm.ConvBN'), weight=3e-3,
        )
    Source: Heo et al., Activation Boundaries (AB), AAAI 2019, eq. 5; the weights are those of the authors' code.
        Deviation: trained together with the task, not in a stage before it.
    """

    def __init__(self, margin: float = 1.0, layer_weights: Sequence[float] | None = None):
        super().__init__(layer_weights)
        self.margin = arguments.number('ABLoss', 'margin', margin, above=0)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        same_shape('ABLoss', student, teacher)
        return _per_sample('ABLoss', F.relu(self.margin - torch.where(teacher > 0, student, -student)).square())


@MODELS.register_module()
class FTLoss(Loss):
    r"""Distance between factors of unit length, averaged over layers.

    .. math:: L = \frac1n \sum_i \mathrm{mean}\,
              \bigl|\, s_i / \lVert s_i \rVert_2 - t_i / \lVert t_i \rVert_2 \,\bigr|

    :class:`~lckd_mm.connectors.Paraphraser`, trained before the first iteration, makes the teacher's factors;
    :class:`~lckd_mm.connectors.Translator` makes the student's.

    Shapes:
        student, teacher: maps of equal shapes.
    Returns:
        A scalar, without unit. The authors' weight is 500, for the last layer alone.
    Raises:
        ValueError: shapes that differ.
    Example:
        loss_ft=dict(
            loss=dict(type='lckd_mm.FTLoss'),
            on='stage4', weight=500.0,
            connector=dict(type='lckd_mm.Translator'),
            teacher_connector=dict(type='lckd_mm.Paraphraser'),
        )
    Source: Kim, Park, Kwak, Factor Transfer (FT), NeurIPS 2018, eq. 3, p = 1. Deviation: the mean instead of
        the sum.
    """

    bounded = True  # factors have unit length

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        same_shape('FTLoss', student, teacher)
        check_rank('FTLoss', student, 2, '(B, ...)')
        return mean((F.normalize(student.flatten(1)) - F.normalize(teacher.flatten(1))).abs())


@MODELS.register_module()
class AFDLoss(Loss):
    r"""Squared distance between features, weighted by a channel attention that is trained with the student.

    .. math::
        L = \frac1n \sum_i \frac1B \sum_{b, c} \rho_{bc}(t_i) \, \mathrm{mean}_{hw}\,(s_i - t_i)^2_{bc}, \qquad
        \rho(t) = \mathrm{softmax}\bigl(W_2 \, \mathrm{relu}(W_1 \, \mathrm{mean}_{hw} |t|)\bigr)

    Args:
        channels: channels of each teacher feature; a term fills them in.
        reduction: :math:`W_1` has ``channels // reduction`` rows, at least 1.
    Shapes:
        student, teacher: lists of maps (B, C_i, H_i, W_i), or tokens (B, N_i, C_i), of equal shapes; a connector maps
        the student's.
    Returns:
        A scalar, in squared units.
    Raises:
        ValueError: shapes, channels or counts that differ.
    Example:
        loss_afd=dict(
            loss=dict(type='lckd_mm.AFDLoss'),
            on=['stage2', 'stage3', 'stage4'], connector=dict(type='lckd_mm.ConvBN'),
        )
    Source: Wang et al., Attentive Feature Distillation (AFD), ICLR 2020, unverified: no code of the authors' was
        found. Deviation: the mean over positions; the attention starts uniform over the channels. Another public
        version brings each channel of both maps to unit length first, and takes the attention from the positions of a
        channel.
    """

    joint = True
    takes = ('map', 'tokens')

    def __init__(self, channels: Sequence[int], reduction: int = 4):
        super().__init__()
        arguments.integer('AFDLoss', 'reduction', reduction)
        self.attentions = nn.ModuleList()
        for count in arguments.integers('AFDLoss', 'channels', channels):
            inner = max(1, count // reduction)
            self.attentions.append(nn.Sequential(nn.Linear(count, inner), nn.ReLU(), nn.Linear(inner, count)))
            nn.init.zeros_(self.attentions[-1][-1].weight)
            nn.init.zeros_(self.attentions[-1][-1].bias)

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        check_channels('AFDLoss', [net[0].in_features for net in self.attentions], teacher)
        total = 0.0
        for net, s, t in zip(self.attentions, student, teacher):
            same_shape('AFDLoss', s, t)
            s, t = channels_first(s), channels_first(t)
            attention = net(t.abs().flatten(2).mean(2)).softmax(1)
            total = total + mean((attention * (s - t).square().flatten(2).mean(2)).sum(1))
        return total / len(teacher)


@MODELS.register_module()
class CWDLoss(Loss):
    r"""KL divergence of each channel's softmax over positions, averaged over channels, samples and layers.

    .. math:: L = \frac1n \sum_i \mathrm{mean}_{b,c}\, \tau^2 \sum_{hw} p^T (\ln p^T - \ln p^S), \qquad
              p = \mathrm{softmax}_{hw}(x_c / \tau)

    On class scores a channel is a class; on features, a connector maps the student's channels.

    Args:
        tau: temperature.
    Shapes:
        student, teacher: maps (B, C, H, W), or tokens (B, N, C), of equal shapes.
    Returns:
        A scalar, in nats times tau squared.
    Raises:
        ValueError: shapes that differ, features without positions, a temperature that is not above 0.
    Example:
        loss_cwd=dict(loss=dict(type='lckd_mm.CWDLoss', tau=1.0), on='logits', weight=5.0)
        loss_stage=dict(
            loss=dict(type='lckd_mm.CWDLoss'),
            on='stage4',
            connector=dict(type='lckd_mm.ConvBN'),
        )
    Source: Shu et al., Channel-wise Knowledge Distillation (CWD), ICCV 2021, eq. 3-5. Deviation: none.
    """

    takes = ('map', 'tokens')

    def __init__(self, tau: float = 4.0):
        super().__init__()
        self.tau = arguments.number('CWDLoss', 'tau', tau, above=0)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        same_shape('CWDLoss', student, teacher)
        student, teacher = channels_first(student).flatten(2), channels_first(teacher).flatten(2)
        if student.shape[2] < 2:
            raise ValueError(
                f'CWDLoss: compares where channels are active, and {tuple(student.shape)} has one position'
            )
        return mean(kd_divergence(student.flatten(0, 1), teacher.flatten(0, 1), self.tau))


@MODELS.register_module()
class MGDLoss(Loss):
    r"""Squared distance between features, summed over a sample's entries and over the levels.

    .. math:: L = \sum_i \frac1B \sum_{b, c, h, w} (s_i - t_i)^2

    With :class:`~lckd_mm.connectors.MaskedGenerator` as connector this is masked generative distillation: from a part
    of the student's positions a small net generates the teacher's map.

    Shapes:
        student, teacher: tensors of equal shapes, with the batch first.
    Returns:
        A scalar, in squared units; the authors' weight is 2e-5 for RetinaNet on COCO, on the five levels of its
        pyramid.
    Raises:
        ValueError: shapes that differ.
    Example:
        loss_mgd=dict(
            loss=dict(type='lckd_mm.MGDLoss'),
            on=['p3', 'p4', 'p5', 'p6', 'p7'],
            connector=dict(type='lckd_mm.MaskedGenerator'),
            weight=2e-5,
        )
    Source: Yang et al., Masked Generative Distillation (MGD), ECCV 2022; the sum and the weight are those of the
        authors' ``det/mmdet/distillation/losses/mgd.py`` and of mmrazor's ``mgd_loss.py``, the levels those of the
        authors' RetinaNet config. Deviation: none.
    """

    def tensor_weights(self, count: int) -> list[float]:
        return [1.0] * count

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        same_shape('MGDLoss', student, teacher)
        return _per_sample('MGDLoss', (student - teacher).square())


@MODELS.register_module()
class PKDLoss(Loss):
    r"""Half the mean squared distance between standardised features, summed over the levels.

    .. math:: L = \sum_i \tfrac12\,\mathrm{mean}\,(\hat s_i - \hat t_i)^2, \qquad
              \hat x = \frac{x - \mu_c}{s_c + 10^{-6}}

    with mean and unbiased standard deviation of each channel over batch and positions
    (:func:`~lckd_mm.functional.standardised`). A level adds about 1 - r, r
    being the mean Pearson correlation of the channels. It ignores the scale of the features, so teacher and student may
    differ in kind.

    Shapes:
        student, teacher: maps (B, C_i, H_i, W_i), such as the levels of a pyramid, or tokens (B, N_i, C_i), of equal
        shapes.
    Returns:
        A scalar, without unit, 0 to about 2 per level; the paper's weight is 6 for two-stage detectors and 10 for
        RetinaNet, on the first four levels.
    Raises:
        ValueError: shapes that differ.
    Example:
        loss_pkd=dict(
            loss=dict(type='lckd_mm.PKDLoss'), on=['p3', 'p4', 'p5', 'p6'], weight=10.0
        )
    Source: Cao et al., PKD, NeurIPS 2022. Deviation: a constant channel gets no gradient. Under several ranks each
        takes the statistics of its own samples.
    """

    takes = ('map', 'tokens')
    bounded = True

    def tensor_weights(self, count: int) -> list[float]:
        return [1.0] * count

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        same_shape('PKDLoss', student, teacher)
        student, teacher = channels_first(student), channels_first(teacher)
        return mean_square('PKDLoss', standardised(student), standardised(teacher)) / 2


@MODELS.register_module()
class CosineLoss(Loss):
    r"""One minus the cosine between the nets' features along the channels, mean over positions and layers.

    .. math:: L = \frac1n \sum_i \mathrm{mean}_{b, hw}\, \bigl(1 - \cos(s_i, t_i)\bigr)

    It ignores the length of the features, so that the teacher may be of another kind, such as a foundation model.

    Shapes:
        student, teacher: maps (B, C_i, H_i, W_i), tokens (B, N_i, C_i) or vectors (B, C_i), of equal shapes.
    Returns:
        A scalar, without unit, 0 to 2; 1, without gradient, where a feature is 0.
    Raises:
        ValueError: shapes that differ.
    Example:
        loss_cosine=dict(
            loss=dict(type='lckd_mm.CosineLoss'),
            on='stage4',
            connector=dict(type='lckd_mm.ConvBN'),
        )
    Source: the form in which detectors are aligned with foundation models, as in RT-DETRv4 (Liao et al., arXiv
        2510.25257); unverified: none of their files was read. Deviation: none known.
    """

    takes = ('map', 'tokens', 'vector')
    bounded = True

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        same_shape('CosineLoss', student, teacher)
        return mean(1 - (_unit(student) * _unit(teacher)).sum(1))


def _unit(x: Tensor) -> Tensor:
    x = channels_first(x)
    squares = x.square().sum(1, keepdim=True)
    # Avoid the square root at 0, where it has no derivative.
    return torch.where(squares > 0, x / torch.where(squares > 0, squares, 1).sqrt(), 0)
