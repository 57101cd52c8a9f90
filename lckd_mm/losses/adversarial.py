"""Adversarial matching: a critic learns to tell student from teacher features; the student learns to fool it."""

import inspect
from collections.abc import Mapping, Sequence

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn
from torch.func import functional_call

from .. import arguments
from ..contexts import own_generator
from ..functional import convex_phi, gradient_norms, product_bound
from ..functional.adversarial import PHIS
from ..functional.shapes import same_shape
from ..registry import MODELS, build_registered, registered_class
from .base import Loss, check_channels


@MODELS.register_module()
class LGANLoss(nn.Module):
    r"""Losses of a Lipschitz critic: :math:`E\,\phi(f(fake)) + E\,\phi(-f(real))`; use it with a penalty on f.

    Args:
        phi: 'x', 'exp', 'softplus' or 'sqrt', as in :func:`~lckd_mm.functional.convex_phi`.
        student: the student's loss: 'linear', :math:`-E\,f(fake)`, or 'phi', :math:`E\,\phi(-f(fake))`.
    Raises:
        ValueError: an unknown phi or form.
    Example:
        loss=dict(
            type='lckd_mm.AdversarialLoss',
            critic=dict(type='lckd_mm.ConvCritic'),
            loss=dict(type='lckd_mm.LGANLoss', phi='softplus'),
        )
    Source: Zhou et al., Lipschitz Generative Adversarial Nets, ICML 2019, eq. 4 with :math:`\varphi(x) = \phi(-x)`.
    """

    FORMS = ('linear', 'phi')

    def __init__(self, phi: str = 'softplus', student: str = 'linear'):
        super().__init__()
        arguments.choice('LGANLoss', 'phi', phi, PHIS)
        arguments.choice('LGANLoss', 'student', student, self.FORMS)
        self.phi, self.form = phi, student

    def critic(self, fake: Tensor, real: Tensor) -> Tensor:
        """The critic's loss, from its outputs (B,) on student and teacher features."""
        return convex_phi(fake, self.phi).mean() + convex_phi(-real, self.phi).mean()

    def student(self, fake: Tensor) -> Tensor:
        """The student's loss, from the critic's outputs (B,) on its features."""
        return -fake.mean() if self.form == 'linear' else convex_phi(-fake, self.phi).mean()


@MODELS.register_module()
class LSGANLoss(nn.Module):
    r"""Least squares: critic :math:`E\,(D(real) - 1)^2 + E\,D(fake)^2`, student :math:`E\,(D(fake) - 1)^2`.

    Example:
        loss=dict(
            type='lckd_mm.AdversarialLoss',
            critic=dict(type='lckd_mm.ConvCritic'),
            loss=dict(type='lckd_mm.LSGANLoss'),
        )
    Source: Mao et al. 2017, as AFD uses it (Chung et al., ICML 2020).
    """

    def critic(self, fake: Tensor, real: Tensor) -> Tensor:
        return (real - 1).square().mean() + fake.square().mean()

    def student(self, fake: Tensor) -> Tensor:
        return (fake - 1).square().mean()


@MODELS.register_module()
class GradientPenalty(nn.Module):
    r"""Penalty on a critic's gradient norms :math:`s_i` at random points between pairs of samples.

    * ``max`` (MaxGP): :math:`\lambda (\max s)^2`.
    * ``gp``: :math:`\lambda\,\mathrm{mean}\,(s - c)^2`; ``lp``: :math:`\lambda\,\mathrm{mean}\,\max(0, s - c)^2`.
    * ``max-al``: :math:`\lambda g^2 + \mu g` with :math:`g = \max s - c` and a multiplier :math:`\mu` that grows by
      ``rate`` times g per step.
    * ``spectral``: :math:`\lambda (\prod_l \sigma_l)^2` with the layers' largest singular values
      (:func:`~lckd_mm.functional.product_bound`); it samples no points.

    Args:
        kind: one of the names above. weight: lambda. target: c.
        rate: step size of the multiplier. multiplier: its initial value; a buffer, stored in the checkpoint.
    Raises:
        ValueError: an unknown kind; a weight, rate or target below 0; ``spectral`` with a critic that is not a chain of
            layers.
    Example:
        loss=dict(
            type='lckd_mm.AdversarialLoss',
            critic=dict(type='lckd_mm.ConvCritic'),
            penalty=dict(type='lckd_mm.GradientPenalty', kind='max', weight=0.1),
        )
    Source: Zhou et al., ICML 2019, and the authors' code: lambda 0.1, c 1, rate 1e-3; Gulrajani et al. 2017 (gp);
        Petzka et al. 2018 (lp). Deviation: each rank takes the largest gradient norm of its own samples, and the
        multiplier follows the mean over ranks.
    """

    KINDS = ('max', 'gp', 'lp', 'max-al', 'spectral')

    def __init__(
        self, kind: str = 'max', weight: float = 0.1, target: float = 1.0, rate: float = 1e-3, multiplier: float = 0.0
    ):
        super().__init__()
        arguments.choice('GradientPenalty', 'kind', kind, self.KINDS)
        for name, value in dict(weight=weight, rate=rate, target=target).items():
            arguments.number('GradientPenalty', name, value, at_least=0)
        self.kind, self.weight, self.target, self.rate = kind, weight, target, rate
        self.register_buffer('draws', torch.zeros((), dtype=torch.int64))
        self.register_buffer('multiplier', torch.tensor(float(multiplier)))

    def forward(self, critic: nn.Module, fake: Tensor, real: Tensor) -> Tensor:
        """The penalty, a scalar, for features (B, ...); only the critic's parameters get a gradient."""
        with torch.autocast(fake.device.type, enabled=False):
            fake, real = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (fake, real))
            if self.kind == 'spectral':
                x = critic.as_map(fake[:1]) if hasattr(critic, 'as_map') else fake[:1]
                return self.weight * product_bound(getattr(critic, 'chain', critic), x).square()
            shape = len(fake), *[1] * (fake.dim() - 1)
            generator = own_generator(self.draws, fake.device)
            share = torch.rand(shape, generator=generator, device=fake.device, dtype=fake.dtype)
            norms = gradient_norms(critic, share * real + (1 - share) * fake)
            if self.kind == 'max':
                return self.weight * norms.amax().square()
            if self.kind == 'gp':
                return self.weight * (norms - self.target).square().mean()
            if self.kind == 'lp':
                return self.weight * (norms - self.target).clamp(min=0).square().mean()
            gap = norms.amax() - self.target
            value = self.weight * gap.square() + self.multiplier.clone() * gap
            if self.training and torch.is_grad_enabled():
                step = gap.detach().clone()  # all_reduce works in place
                all_reduce(step, 'mean')
                self.multiplier += self.rate * step.to(self.multiplier)
            return value


@MODELS.register_module()
class AdversarialLoss(Loss):
    r"""Trains a critic and the student with one scalar; each gets only the gradient of its own loss.

    .. math:: L_{student}(f(s)) + L_{critic}(f(s), f(t)) + penalty(f)

    The critic's loss uses detached features, and the student's loss uses detached critic parameters. So one backward
    pass gives each side its own gradient, and one optimizer step updates both.

    Deviation: the papers give the critic its own optimizer and several steps per student step. Here it takes one step,
    with a learning rate set by ``paramwise_cfg=dict(custom_keys={'critics': dict(lr_mult=…)})``; under
    :class:`~lckd_mm.distillation.OnlineDistiller` it can have its own optimizer. The term's weight scales both
    sides; this matters with SGD, but not with Adam.

    Args:
        critic: config of a module from features to values (B,), such as ``lckd_mm.ConvCritic``; one is built per tap.
            A :class:`~lckd_mm.distillation.Term` fills in missing ``in_channels``.
        channels: channels of each teacher feature; a term fills them in.
        loss: config of :class:`LGANLoss` or similar. penalty: config of :class:`GradientPenalty`, or None.
    Shapes:
        student, teacher: lists of features of equal shapes, (B, C, H, W) or (B, C); averaged.
    Raises:
        ValueError: a critic with BatchNorm, shapes that differ.
    Example:
        loss_lgan=dict(
            loss=dict(type='lckd_mm.AdversarialLoss', critic=dict(type='lckd_mm.ConvCritic')),
            on='stage4',
            connector=dict(type='lckd_mm.ConvBN'),
            weight=0.01,
        )
    """

    joint = True

    def __init__(
        self,
        critic: Mapping,
        channels: Sequence[int],
        loss: Mapping = dict(type='lckd_mm.LGANLoss'),
        penalty: Mapping | None = None,
    ):
        super().__init__()
        self.channels = arguments.integers('AdversarialLoss', 'channels', channels)
        who = 'AdversarialLoss: critic'
        self.critics = nn.ModuleList(build_registered(_with_width(critic, c, who), who) for c in self.channels)
        for name, module in self.critics.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f'{who} {type(self.critics[0]).__name__} has a BatchNorm ({name}), which couples the samples of a '
                    'batch, so that none has a slope of its own; take one without, such as lckd_mm.ConvCritic'
                )
        self.loss = build_registered(loss, 'AdversarialLoss: loss')
        self.penalty = None if penalty is None else build_registered(penalty, 'AdversarialLoss: penalty')

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        check_channels('AdversarialLoss', self.channels, teacher)
        values = []
        for critic, ours, theirs in zip(self.critics, student, teacher):
            same_shape('AdversarialLoss', ours, theirs)
            fake, real = ours.detach(), theirs.detach()
            of_critic = self.loss.critic(critic(fake), critic(real))
            if self.penalty is not None:
                of_critic = of_critic + self.penalty(critic, fake, real)
            frozen = {name: parameter.detach() for name, parameter in critic.named_parameters()}
            of_student = self.loss.student(functional_call(critic, frozen, (ours,)))
            values.append(of_student + of_critic)
        return torch.stack(values).mean()


def _with_width(critic: Mapping, width: int, who: str) -> Mapping:
    kind = registered_class(critic, who)
    return {'in_channels': width, **critic} if 'in_channels' in inspect.signature(kind.__init__).parameters else critic
