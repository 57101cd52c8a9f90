"""Distillation that raises a lower bound of the mutual information between both nets' features."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, all_reduce, get_world_size
from torch import Tensor, nn

from .. import arguments
from ..contexts import own_generator
from ..functional.shapes import channels_first, mean, same_shape
from ..hosts import sample_indices
from ..registry import MODELS
from .base import Loss, channel_pairs, check_channels

_OWN_LAYERS = 'leave out the connector, since this loss maps the channels itself'


@MODELS.register_module()
class VIDLoss(Loss):
    r"""Negative log-likelihood of the teacher's features, normal around what the student's predict; sum over layers.

    .. math:: L = \sum_i \tfrac12\, \mathrm{mean} \Bigl[ \frac{(t_i - \mu_i(s_i))^2}{\sigma_i^2} +
              \ln \sigma_i^2 \Bigr], \qquad \sigma_{ic}^2 = \ln (1 + e^{a_{ic}}) + 10^{-5}

    :math:`\mu_i` has three 1 x 1 convolutions with ReLUs between them; it and a, one number per channel, are trained
    with the student. No connector is needed. Of two maps that differ in size, the larger is average-pooled.

    Args:
        channels, student_channels: channels of each feature of the teacher and the student; a term fills them in.
        variance: :math:`\sigma^2` at the beginning.
    Shapes:
        student, teacher: lists of maps (B, C_i, H_i, W_i), tokens (B, N_i, C_i) or vectors (B, C_i).
    Returns:
        A scalar, in nats per entry of the feature, up to a constant. The usual weight is 1; a share of the loss makes
        no sense, since the value may pass 0.
    Raises:
        ValueError: a variance not above 1e-5; numbers of tokens, channels or features that differ from those expected.
    Example:
        loss_vid=dict(loss=dict(type='lckd_mm.VIDLoss'), on=['stage2', 'stage3', 'stage4'])
    Source: Ahn et al., Variational Information Distillation (VID), CVPR 2019; checked against
        ``distiller_zoo/VID.py`` of HobbitLong/RepDistiller, whose variance begins at 5. Deviation: none from that file;
        ``distillers/VID.py`` of mdistiller has the same formula, but leaves a out of what is trained.
    """

    joint = True
    takes = ('map', 'tokens', 'vector')

    def __init__(self, channels: Sequence[int], student_channels: Sequence[int], variance: float = 5.0):
        super().__init__()
        arguments.number('VIDLoss', 'variance', variance, above=1e-5)
        # The inverse of softplus, which does not overflow in this form.
        start = variance - 1e-5 + math.log(-math.expm1(1e-5 - variance))
        self.means, self.scales = nn.ModuleList(), nn.ParameterList()
        for own, count in channel_pairs('VIDLoss', student_channels, channels):
            layers = [nn.Conv1d(width, count, 1, bias=False) for width in (own, count, count)]
            self.means.append(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]))
            self.scales.append(nn.Parameter(torch.full((count, 1), start)))

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        check_channels('VIDLoss', [net[0].in_channels for net in self.means], student, _OWN_LAYERS)
        check_channels('VIDLoss', [len(scale) for scale in self.scales], teacher)
        total = 0.0
        for net, scale, s, t in zip(self.means, self.scales, student, teacher):
            s, t = _positions('VIDLoss', s, t)
            variance = F.softplus(scale) + 1e-5
            total = total + mean((t - net(s)).square() / variance + variance.log()) / 2
        return total


def _positions(who: str, student: Tensor, teacher: Tensor) -> list[Tensor]:
    """Both features as (B, C, positions); of maps, the larger is pooled to the size of the smaller."""
    if student.dim() == teacher.dim() == 4:
        size = [min(sides) for sides in zip(student.shape[2:], teacher.shape[2:])]
        student, teacher = (
            x if list(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size) for x in (student, teacher)
        )
    else:
        same_shape(who, student[..., :1], teacher[..., :1])
    return [channels_first(x).flatten(2) if x.dim() > 2 else x.unsqueeze(2) for x in (student, teacher)]


@MODELS.register_module()
class CRDLoss(Loss):
    r"""Contrastive loss: tells both nets' features of one image from those of two images, over the whole data set.

    .. math:: L = \ell(u, M^T) + \ell(v, M^S), \qquad
              \ell(u, M) = -\frac1B \sum_b \Bigl[ \ln \frac{p_{bb}}{p_{bb} + K/n} +
              \sum_{k} \ln \frac{K/n}{p_{bk} + K/n} \Bigr], \qquad
              p_{bk} = \frac{1}{Z} \, e^{\langle u_b, M_k \rangle / \tau}

    (with :math:`10^{-7}` in the divisors) where u and v are the features of student and teacher, mapped to ``dim``
    channels by a trained linear layer each, of length 1. The memories :math:`M^S, M^T` hold such vectors for each of
    the n images; the batch's images are first compared, then mixed in with ``momentum``. K images of other classes are
    the negatives; without labels, K other images. Z is n times the mean of the first batch. Of maps and tokens, the
    mean over positions is taken. No connector is needed.

    Args:
        samples: number of images in the training set, n.
        channels, student_channels: channels of the teacher's and of the student's feature; a term fills them in.
        dim: channels of u and v. negatives: K. tau: temperature. momentum: share of the old vector in the memory.
    Shapes:
        student, teacher: vectors (B, C), maps (B, C, H, W) or tokens (B, N, C); sizes and channels may differ.
    Returns:
        A scalar, in nats; the authors' weight is 0.8, on the vector before the classifier.
    Raises:
        ValueError: several taps; samples without an index, or with one beyond ``samples``; values out of range.
    Example:
        loss_crd=dict(
            loss=dict(type='lckd_mm.CRDLoss', samples=50000), on='embedding', weight=0.8
        )
    Source: Tian, Krishnan, Isola, Contrastive Representation Distillation (CRD), ICLR 2020; checked against
        ``crd/`` and ``dataset/cifar100.py`` of the authors' RepDistiller. Deviation: labels are learnt as the images
        come, so that in the first epoch a negative may be of the same class; negatives may repeat. The memories, 4 n
        ``dim`` bytes each (25.6 MB for CIFAR-100), are in every checkpoint; under several ranks all hold the same. The
        images of a ConcatDataset have the indices of its parts, which are not distinct.
    """

    takes = ('vector', 'map', 'tokens')

    def __init__(
        self,
        samples: int,
        channels: Sequence[int],
        student_channels: Sequence[int],
        dim: int = 128,
        negatives: int = 16384,
        tau: float = 0.07,
        momentum: float = 0.5,
    ):
        super().__init__()
        self.samples = arguments.integer('CRDLoss', 'samples', samples, at_least=2)
        arguments.integer('CRDLoss', 'dim', dim)
        self.negatives = arguments.integer('CRDLoss', 'negatives', negatives)
        self.tau = arguments.number('CRDLoss', 'tau', tau, above=0.0125)
        self.momentum = arguments.number('CRDLoss', 'momentum', momentum, at_least=0, at_most=1)
        theirs = arguments.integers('CRDLoss', 'channels', channels)
        ours = arguments.integers('CRDLoss', 'student_channels', student_channels)
        if (len(ours), len(theirs)) != (1, 1):
            raise ValueError(
                f'CRDLoss: compares one feature of each net, got {len(ours)} and {len(theirs)}; give each a term of '
                'its own'
            )
        self.student, self.teacher = nn.Linear(ours[0], dim), nn.Linear(theirs[0], dim)
        for name in ('student_memory', 'teacher_memory'):
            self.register_buffer(name, (torch.rand(samples, dim) * 2 - 1) * (3 / dim) ** 0.5)
        # The class of each image, -1 until it is seen; Z of both parts, 0 until the first batch.
        self.register_buffer('classes', torch.full((samples,), -1))
        self.register_buffer('constants', torch.zeros(2))
        self.register_buffer('draws', torch.zeros((), dtype=torch.int64))

    def forward(self, student: Tensor, teacher: Tensor, data_samples: list | None = None) -> Tensor:
        check_channels('CRDLoss', [self.student.in_features], [student], _OWN_LAYERS)
        indices = sample_indices(data_samples, 'CRDLoss')
        if indices.max() >= self.samples:
            raise ValueError(
                f'CRDLoss: a sample has the index {indices.max()}, but samples={self.samples}; give the number of '
                'images of the training set'
            )
        indices = indices.to(student.device)
        ours, theirs = (_embedded(*of) for of in ((self.student, student), (self.teacher, teacher)))
        labels = _labels(data_samples, student.device)
        if self.training and labels is not None:
            self.classes[indices] = labels
        places = torch.cat([indices[:, None], self._negatives(indices, labels)], 1)
        parts = ((ours, self.teacher_memory), (theirs, self.student_memory))
        # The memory is copied, since it changes below, before the gradient is computed.
        scores = [(x @ memory.clone().T / self.tau).gather(1, places).exp() for x, memory in parts]
        constants = self._constants(scores)
        if self.training:
            self._remember(indices, labels, ours.detach(), theirs.detach())
        return sum(self._contrast(score / z) for score, z in zip(scores, constants))

    def _contrast(self, p: Tensor) -> Tensor:
        noise = self.negatives / self.samples
        same = p[:, 0] / (p[:, 0] + noise + 1e-7)
        others = noise / (p[:, 1:] + noise + 1e-7)
        return -mean(same.log() + others.log().sum(1))

    @torch.no_grad()
    def _negatives(self, indices: Tensor, labels: Tensor | None) -> Tensor:
        """Places in the memory of ``negatives`` images for each of these: of other classes, or other images."""
        if labels is None:
            order, first, past = None, indices, indices + 1
        else:
            # In order of the classes, the images of one class are a block, and drawing leaves it out.
            sorted_classes, order = self.classes.sort(stable=True)
            first = torch.searchsorted(sorted_classes, labels)
            past = torch.searchsorted(sorted_classes, labels, right=True)
        outside = (self.samples - past + first)[:, None]
        generator = own_generator(self.draws, indices.device)
        uniform = torch.rand(
            len(indices), self.negatives, generator=generator, device=indices.device, dtype=torch.float64
        )
        drawn = (uniform * outside).long()
        drawn = drawn + (drawn >= first[:, None]) * (past - first)[:, None]
        return drawn if order is None else order[drawn.clamp(max=self.samples - 1)]

    @torch.no_grad()
    def _constants(self, scores: list[Tensor]) -> Tensor:
        if self.constants.all():
            return self.constants
        found = torch.stack([score.mean() * self.samples for score in scores])
        if self.training:
            all_reduce(found, 'mean')
            self.constants.copy_(found)
        return found

    @torch.no_grad()
    def _remember(self, indices: Tensor, labels: Tensor | None, ours: Tensor, theirs: Tensor) -> None:
        """Mix the images of all ranks into the memories."""
        labels = self.classes[indices] if labels is None else labels
        rows, vectors = _of_all_ranks(torch.stack([indices, labels], 1)), _of_all_ranks(torch.cat([ours, theirs], 1))
        places = rows[:, 0]
        self.classes[places] = rows[:, 1]
        for memory, new in zip((self.student_memory, self.teacher_memory), vectors.chunk(2, 1)):
            mixed = self.momentum * memory[places] + (1 - self.momentum) * new.to(memory.dtype)
            memory[places] = F.normalize(mixed, dim=1)


def _embedded(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.normalize(layer(x if x.dim() == 2 else channels_first(x).flatten(2).mean(2)), dim=1)


def _labels(data_samples: list, device: torch.device) -> Tensor | None:
    if any('gt_score' in sample and sample.gt_score.max() < 1 - 1e-6 for sample in data_samples):
        raise ValueError(
            'CRDLoss: the images are mixtures (Mixup, CutMix), and the memory has a place for each image; remove '
            'batch_augments'
        )
    labels = [sample.get('gt_label') for sample in data_samples]
    if any(label is None or label.numel() != 1 for label in labels):
        return None
    return torch.cat([label.flatten() for label in labels]).to(device)


def _of_all_ranks(x: Tensor) -> Tensor:
    """The rows of all ranks, whose numbers may differ, in order of the ranks."""
    if get_world_size() == 1:
        return x
    counts = torch.cat(all_gather(x.new_tensor([len(x)], dtype=torch.int64))).tolist()
    padded = F.pad(x, (0, 0, 0, max(counts) - len(x)))
    return torch.cat([part[:count] for part, count in zip(all_gather(padded), counts)])
