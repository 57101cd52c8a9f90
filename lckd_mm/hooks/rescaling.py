"""GradientRescaleHook: logs how much distillation rescales each sample's gradient."""

from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from .. import arguments
from ..functional import gradient_rescaling, partial_target
from ..hosts import owner_head
from ..losses import KDLoss, PartialKDLoss
from ..registry import HOOKS
from .distillation import distiller_of

_QUANTILES = (0.05, 0.5, 0.95)


@HOOKS.register_module()
class GradientRescaleHook(Hook):
    """Logs how a term on the class scores rescales the gradient at the true class, over the samples of a batch.

    Scalars of :func:`~lckd_mm.functional.gradient_rescaling`, in the log and every backend of the Visualizer, named
    after the term: ``rescale_<method>_mean``, ``_std``, and the quantiles ``_q05``, ``_q50`` and ``_q95``. A factor
    above 1 means that the sample counts more than with labels only, below 0 that the teacher pulls away from the label.
    The student's own loss counts with its head's ``loss_weight``. Samples (pixels, for segmentation) whose factor is
    infinite, because the student is fully certain, are left out.

    Args:
        term: a term with :class:`~lckd_mm.losses.PartialKDLoss`, or :class:`~lckd_mm.losses.KDLoss` on a softmax.
        interval: in iterations.
    Raises:
        ValueError: no such term; a batch without one label per sample. TypeError: the term has another loss.
    Source: Tang et al., arXiv 2002.03532.
    Example: ``custom_hooks = [dict(type='lckd_mm.GradientRescaleHook', term='loss_kd', interval=10)]``
    """

    def __init__(self, term: str = 'loss_kd', interval: int = 50):
        self.term, self._name = term, 'rescale_' + term.removeprefix('loss_')
        self.interval = arguments.integer('GradientRescaleHook', 'interval', interval)
        self._handle: Any = None
        self._scalars: dict[str, float] = {}

    def before_train(self, runner) -> None:
        model = distiller_of(runner, 'GradientRescaleHook')
        term = model.terms[arguments.choice('GradientRescaleHook', 'term', self.term, model.terms)]
        soft = isinstance(term.loss, PartialKDLoss) or getattr(term.loss, 'activation', None) == 'softmax'
        if not soft or not isinstance(term.loss, (KDLoss, PartialKDLoss)) or len(term.student.names) != 1:
            raise TypeError(
                f'GradientRescaleHook: the term {self.term!r} has {term.loss_name}; it looks at KDLoss or '
                "PartialKDLoss on one tap of a softmax's scores"
            )
        head = owner_head(model.student, model.student_taps.addresses[term.student.names[0]].path)
        loss = getattr(head, 'loss_module', None) or getattr(head, 'loss_decode', None)
        self._task_weight = float(getattr(loss, 'loss_weight', 1.0))

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.every_n_train_iters(runner, self.interval) or runner.iter == 0:
            term = distiller_of(runner, 'GradientRescaleHook').terms[self.term]
            self._weight = term.weight * term.scale
            self._handle = term.loss.register_forward_hook(self._look, with_kwargs=True)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            if not self._scalars:  # while every weight is 0: what was measured before is not logged on
                for key in [key for key in runner.message_hub.log_scalars if key.startswith(f'train/{self._name}_')]:
                    del runner.message_hub.log_scalars[key]
        for name, value in self._scalars.items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        self._scalars = {}

    @torch.no_grad()
    def _look(self, loss: nn.Module, args: tuple, kwargs: dict, value: Tensor) -> None:
        student, teacher = (x[0] if isinstance(x, list) else x for x in args)
        target, valid = loss.targets(student, kwargs.get('data_samples'), 'GradientRescaleHook')
        if isinstance(loss, PartialKDLoss):
            soft, squared = loss.soft_target(teacher, target), loss.tau_squared
        else:
            soft, squared = partial_target('full', teacher, tau=loss.tau), True
        factors = gradient_rescaling(student, soft, target, loss.tau, self._weight, self._task_weight, squared)
        factors = factors[valid & factors.isfinite()].float()
        if not factors.numel():
            return
        name = self._name
        self._scalars[f'{name}_mean'] = factors.mean().item()
        self._scalars[f'{name}_std'] = factors.std(correction=0).item()
        # Sort instead of torch.quantile, which is limited to 16 million values.
        ordered = factors.sort().values
        for q in _QUANTILES:
            self._scalars[f'{name}_q{round(100 * q):02d}'] = ordered[round(q * (len(ordered) - 1))].item()
