"""Distillation of the outputs' sensitivity to the input."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import arguments
from ..functional import directional_gap, unit_gap
from ..functional.shapes import mean_square
from ..registry import MODELS
from .streams import own_generator

Feature = Tensor | list[Tensor]


@MODELS.register_module()
class JacobianLoss(nn.Module):
    r"""Matches the nets' Jacobians with respect to the image, with a second forward pass of both nets.

    * ``difference``: the Jacobians along a random direction (:func:`~lckd_mm.functional.directional_gap`), from one
      more forward pass of both nets.
    * ``noise``: :math:`\mathrm{mean}\,(f_S(x + \xi) - f_T(x + \xi))^2`, the outputs under input noise. Its expectation
      is the squared gap of the outputs plus :math:`\sigma^2` times that of the Jacobians.
    * ``gradient``: the exact gradients of the score of the teacher's top class
      (:func:`~lckd_mm.functional.unit_gap`), from another forward and backward pass of both nets. The student's
      backward pass is differentiated again: about three times the cost of a student step. The score of a dense
      prediction is its mean over positions. Layers must have second derivatives: SyncBN on several ranks has none.

    The second pass leaves BatchNorm's running statistics unchanged and drops the same units in dropout. This does not
    hold in blocks with activation checkpointing (``with_cp``), which run again in the backward pass.

    Args:
        mode: one of the names above.
        sigma: standard deviation of the noise, in units of the normalised images.
    Shapes:
        student, teacher: outputs (B, ...) of equal shape, or a list of them; ``gradient`` takes class scores
        (B, K, ...).
    Returns:
        A scalar.
    Raises:
        ValueError: an unknown mode, a sigma that is not above 0, shapes that differ.
    Source: Srinivas and Fleuret, Knowledge Transfer with Jacobian Matching, ICML 2018, proposition 1 and eq. 6.
        Deviation: the task's own loss sees the clean images only.
    """

    MODES = ('difference', 'noise', 'gradient')

    def __init__(self, mode: str = 'difference', sigma: float = 0.1):
        super().__init__()
        arguments.choice('JacobianLoss', 'mode', mode, self.MODES)
        arguments.scale('JacobianLoss', 'sigma', sigma)
        self.mode, self.sigma = mode, sigma
        # Saved in the checkpoint, so that a resumed run draws new noise.
        self.register_buffer('draws', torch.zeros((), dtype=torch.int64))

    def forward(
        self, student: Feature, teacher: Feature, inputs: Tensor, replay: Callable[[Tensor], tuple[Feature, Feature]]
    ) -> Tensor:
        if self.mode == 'gradient':
            return self._gradient_gap(student, inputs, replay)
        noisy = replay(inputs + self.sigma * self._noise(inputs))
        clean = [_as_list(x) for x in (student, teacher)]
        moved = [_as_list(x) for x in noisy]
        gaps = []
        for s, t, s2, t2 in zip(*clean, *moved, strict=True):
            if s2.shape != t2.shape:
                raise ValueError(f'JacobianLoss: student {tuple(s2.shape)} and teacher {tuple(t2.shape)} differ')
            difference = self.mode == 'difference'
            gaps.append(directional_gap((s, s2), (t, t2), self.sigma) if difference else mean_square(s2, t2))
        return torch.stack(gaps).mean()

    def _gradient_gap(self, student: Feature, inputs: Tensor, replay: Callable) -> Tensor:
        if not isinstance(student, Tensor) or student.dim() < 2:
            raise ValueError(
                "JacobianLoss: mode='gradient' takes one tap of class scores (B, K, ...), as in on='logits'"
            )
        # MATH attention: the fused kernels have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            x = inputs.detach().requires_grad_()
            s, t = (y.flatten(2).mean(2) if y.dim() > 2 else y for y in replay(x))
            if s.shape != t.shape:
                raise ValueError(f'JacobianLoss: student {tuple(s.shape)} and teacher {tuple(t.shape)} differ')
            first = t.detach().argmax(1, keepdim=True)
            (ours,) = torch.autograd.grad(s.gather(1, first).sum(), x, create_graph=True)
            (theirs,) = torch.autograd.grad(t.gather(1, first).sum(), x)
        return unit_gap(ours, theirs)

    def _noise(self, like: Tensor) -> Tensor:
        generator = own_generator(self.draws, like.device)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _as_list(x: Feature) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else list(x)
