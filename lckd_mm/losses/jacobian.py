"""Distillation of the outputs' sensitivity to the input."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import arguments
from ..contexts import own_generator
from ..functional.shapes import LAYOUTS, channels_first, check_kind, check_rank, mean, mean_square, same_shape
from ..registry import MODELS
from .base import Loss


@MODELS.register_module()
class JacobianLoss(Loss):
    r"""Matches the nets' Jacobians with respect to the image, with a second forward pass of both nets.

    * ``difference``: :math:`\mathrm{mean}\,\bigl((f_S(x + \xi) - f_S(x)) - (f_T(x + \xi) - f_T(x))\bigr)^2 / \sigma^2`
      with :math:`\xi \sim N(0, \sigma^2 I)`, from one more forward pass of both nets. Its expectation is
      :math:`\lVert J_S - J_T \rVert_F^2` divided by the number of outputs, up to terms of order :math:`\sigma^2`.
    * ``noise``: :math:`\mathrm{mean}\,(f_S(x + \xi) - f_T(x + \xi))^2`, the outputs under input noise. Its expectation
      is the squared gap of the outputs plus :math:`\sigma^2` times that of the Jacobians.
    * ``gradient``: :math:`\mathrm{mean}_b \bigl\lVert g_S / \lVert g_S \rVert - g_T / \lVert g_T \rVert \bigr\rVert^2`,
      which is 2 (1 - cosine), of the exact gradients of the score of the teacher's top class, from another forward and
      backward pass of both nets. A zero gradient stays zero. The student's backward pass is differentiated again: about
      three times the cost of a student step. The score of a dense prediction is its mean over positions. Layers must
      have second derivatives: SyncBN on several ranks has none.

    The second pass leaves BatchNorm's running statistics unchanged and drops the same units in dropout. This does not
    hold in blocks with activation checkpointing (``with_cp``), which run again in the backward pass.

    Args:
        mode: one of the names above.
        sigma: standard deviation of the noise, in units of the normalised images.
    Shapes:
        student, teacher: lists of outputs (B, ...) of equal shapes; ``gradient`` takes one tap of class scores, a
        vector (B, K), tokens (B, N, K) or a map (B, K, H, W).
    Returns:
        A scalar, in squared units of outputs over inputs; of outputs for ``noise``; without unit for ``gradient``.
    Raises:
        ValueError: an unknown mode, a sigma that is not above 0, shapes that differ.
    Example:
        loss_jacobian=dict(loss=dict(type='lckd_mm.JacobianLoss', mode='noise'), on='logits')
    Source: Srinivas and Fleuret, Knowledge Transfer with Jacobian Matching, ICML 2018, proposition 1 and eq. 6.
        Deviation: ``difference`` leaves out the outputs' own gap; the task's own loss sees the clean images only.
    """

    MODES = ('difference', 'noise', 'gradient')
    joint = True

    def __init__(self, mode: str = 'difference', sigma: float = 0.1):
        super().__init__()
        arguments.choice('JacobianLoss', 'mode', mode, self.MODES)
        arguments.number('JacobianLoss', 'sigma', sigma, above=0)
        self.mode, self.sigma = mode, sigma
        # Saved in the checkpoint, so that a resumed run draws new noise.
        self.register_buffer('draws', torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        inputs: Tensor,
        replay: Callable[[Tensor], tuple[list[Tensor], list[Tensor]]],
    ) -> Tensor:
        if self.mode == 'gradient':
            return self._gradient_gap(student, inputs, replay)
        noisy = replay(inputs + self.sigma * self._noise(inputs))
        if self.mode == 'difference':
            quads = zip(student, teacher, *noisy, strict=True)
            gaps = [mean_square('JacobianLoss', s2 - s, t2 - t) / self.sigma**2 for s, t, s2, t2 in quads]
        else:
            gaps = [mean_square('JacobianLoss', s, t) for s, t in zip(*noisy, strict=True)]
        return torch.stack(gaps).mean()

    def _gradient_gap(self, student: list[Tensor], inputs: Tensor, replay: Callable) -> Tensor:
        who = "JacobianLoss with mode='gradient'"
        if len(student) != 1:
            raise ValueError(f"{who}: takes one tap of class scores, as in on='logits'")
        check_kind(who, student[0], tuple(LAYOUTS))
        # MATH attention: the fused kernels have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            x = inputs.detach().requires_grad_()
            s, t = (channels_first(y).flatten(2).mean(2) if y.dim() > 2 else y for (y,) in replay(x))
            same_shape('JacobianLoss', s, t)
            first = t.detach().argmax(1, keepdim=True)
            (ours,) = torch.autograd.grad(s.gather(1, first).sum(), x, create_graph=True)
            (theirs,) = torch.autograd.grad(t.gather(1, first).sum(), x)
        return unit_gap(ours, theirs)

    def _noise(self, like: Tensor) -> Tensor:
        generator = own_generator(self.draws, like.device)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def unit_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of normalised gradients ``(B, ...)``; a gradient of 0 stays 0 and gets no gradient."""
    check_rank('JacobianLoss', student, 2, '(B, ...)')
    return mean((_unit(student.flatten(1)) - _unit(teacher.flatten(1))).square().sum(1))


def _unit(x: Tensor) -> Tensor:
    # Divide by the largest entry first: the square of a small gradient, or the cube in the derivative, would underflow.
    largest = x.detach().abs().amax(1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    square = x.square().sum(1, keepdim=True)
    # Avoid the square root at 0, where it has no derivative.
    return x * torch.where(square > 0, square, 1).rsqrt()
