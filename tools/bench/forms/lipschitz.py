"""Forms of Lipschitz guidance that the study lipschitz_forms.py tries beside KD; no part of the package.

With M the transmitting matrix of two consecutive maps of one net (:func:`~lckd_mm.functional.transmitting_matrix`),
σ its largest singular value, u and v the singular vectors of σ, and gap the squared difference of logarithms:

    ShareOfNorm         gap of σ / ‖M‖_F, the share of the leading direction: no widths, no scale
    Shares              squared difference of the k largest σ_j² / Σ σ²
    LeadingPatterns     1 − cos² of F₁ᵀu of both nets, over the positions, and of F₂ᵀv
    PrincipalPatterns   1 − cos² of Fᵀp of both nets, p the leading left singular vector of F: the control without M
    Above               gap of σ where the student's is the larger one, else 0: a regulariser
    Response            gap of ‖f(x + ξ) − f(x)‖ / ‖f(x)‖ of each map, with Gaussian noise ξ on the images
    KDOnNoise           KD of the class scores on x + ξ: the control of Response
    SmoothKD            KD, a sample weighted by the inverse of the teacher's ‖f(x + ξ) − f(x)‖ of its scores

Losses of M take lists of maps as LipschitzLoss does, and have its weights of the layers.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from lckd_mm.contexts import own_generator
from lckd_mm.functional import kd_divergence, lipschitz_gap, transmitting_matrix
from lckd_mm.losses import Loss
from lckd_mm.registry import MODELS

_EPS = 1e-12


class _OfPairs(Loss):
    """The weighted sum over pairs of consecutive maps of ``compare(student's pair, teacher's pair)``."""

    joint = True
    takes = ('map',)

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        pairs = list(zip(pairwise(student), pairwise(teacher)))
        return sum(2.0 ** (i - len(pairs)) * self.compare(ours, theirs) for i, (ours, theirs) in enumerate(pairs))


def singular_values(front: Tensor, back: Tensor) -> Tensor:
    """Singular values ``(B, C1)`` of M, in decreasing order."""
    matrix = transmitting_matrix(front, back)
    return torch.linalg.eigvalsh(matrix @ matrix.mT).flip(1).clamp(min=_EPS).sqrt()


@MODELS.register_module()
class ShareOfNorm(_OfPairs):
    @staticmethod
    def share(front: Tensor, back: Tensor) -> Tensor:
        values = singular_values(front, back)
        return values[:, 0] / values.square().sum(1).clamp(min=_EPS).sqrt()

    def compare(self, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> Tensor:
        return lipschitz_gap(self.share(*ours), self.share(*theirs).detach()).mean()


@MODELS.register_module()
class Shares(_OfPairs):
    def __init__(self, k: int = 4):
        super().__init__()
        self.k = k

    def shares(self, front: Tensor, back: Tensor) -> Tensor:
        square = singular_values(front, back).square()
        return square[:, : self.k] / square.sum(1, keepdim=True).clamp(min=_EPS)

    def compare(self, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> Tensor:
        return (self.shares(*ours) - self.shares(*theirs).detach()).square().sum(1).mean()


@MODELS.register_module()
class Above(_OfPairs):
    def compare(self, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> Tensor:
        student, teacher = singular_values(*ours)[:, 0], singular_values(*theirs)[:, 0].detach()
        return lipschitz_gap(torch.maximum(student, teacher), teacher).mean()


@MODELS.register_module()
class LeadingPatterns(_OfPairs):
    @staticmethod
    def patterns(front: Tensor, back: Tensor) -> list[Tensor]:
        """F₁ᵀu and F₂ᵀv ``(B, H, W)``: u and v are one more step of the power iteration, which has a gradient."""
        matrix = transmitting_matrix(front, back)
        _, u = torch.linalg.eigh((matrix @ matrix.mT).detach())
        right = matrix.mT @ u[:, :, -1:]
        left = matrix @ right.detach()
        return [(x.flatten(2).mT @ y)[..., 0] for x, y in ((front, left), (back, right))]

    def compare(self, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> Tensor:
        pairs = zip(self.patterns(*ours), self.patterns(*theirs))
        cosines = [torch.cosine_similarity(x, y.detach(), 1, _EPS) for x, y in pairs]
        return sum(1 - c.square().mean() for c in cosines) / 2


@MODELS.register_module()
class PrincipalPatterns(Loss):
    takes = ('map',)

    @staticmethod
    def pattern(x: Tensor) -> Tensor:
        flat = x.flatten(2)
        _, p = torch.linalg.eigh((flat @ flat.mT).detach())
        # One more step of the power iteration, which has a gradient.
        return (flat.mT @ (flat @ (flat.mT @ p[:, :, -1:]).detach()))[..., 0]

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        cosine = torch.cosine_similarity(self.pattern(student), self.pattern(teacher).detach(), 1, _EPS)
        return 1 - cosine.square().mean()


class _OnNoise(Loss):
    joint = True

    def __init__(self, sigma: float = 0.1):
        super().__init__()
        self.sigma = sigma
        self.register_buffer('draws', torch.zeros((), dtype=torch.int64))

    def noisy(self, inputs: Tensor, replay: Callable) -> tuple[list[Tensor], list[Tensor]]:
        noise = torch.randn(inputs.shape, generator=own_generator(self.draws, inputs.device), device=inputs.device)
        return replay(inputs + self.sigma * noise)


@MODELS.register_module()
class Response(_OnNoise):
    def forward(self, student: list[Tensor], teacher: list[Tensor], inputs: Tensor, replay: Callable) -> Tensor:
        noisy = self.noisy(inputs, replay)
        gaps = [
            lipschitz_gap(_change(s, s2), _change(t, t2).detach()).mean()
            for s, t, s2, t2 in zip(student, teacher, *noisy)
        ]
        return torch.stack(gaps).mean()


@MODELS.register_module()
class KDOnNoise(_OnNoise):
    def __init__(self, tau: float = 4.0, sigma: float = 0.1):
        super().__init__(sigma)
        self.tau = tau

    def forward(self, student: list[Tensor], teacher: list[Tensor], inputs: Tensor, replay: Callable) -> Tensor:
        (ours,), (theirs,) = self.noisy(inputs, replay)
        return kd_divergence(ours, theirs.detach(), self.tau).mean()


@MODELS.register_module()
class SmoothKD(KDOnNoise):
    def forward(self, student: list[Tensor], teacher: list[Tensor], inputs: Tensor, replay: Callable) -> Tensor:
        with torch.no_grad():
            _, (noisy,) = self.noisy(inputs, replay)
            weight = 1 / _change(teacher[0], noisy).clamp(min=1e-3)
        return (kd_divergence(student[0], teacher[0].detach(), self.tau) * weight / weight.mean()).mean()


def _change(clean: Tensor, noisy: Tensor) -> Tensor:
    """``(B,)``: the relative change of each sample."""
    clean, noisy = clean.flatten(1), noisy.flatten(1)
    return (noisy - clean).norm(dim=1) / clean.norm(dim=1).clamp(min=_EPS)
