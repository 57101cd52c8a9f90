"""NonFiniteHook: stops the run, or skips the update, when a distillation term is not finite."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from mmengine.dist import is_distributed
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor

from .. import arguments
from ..contexts import saved_buffers
from ..distillation import NonFiniteError, Term
from ..distillation.finite import ADVICE, all_finite, iteration, on_all_ranks
from ..distillation.side import Feature
from ..registry import HOOKS
from .distillation import distiller_of

_ACTIONS = ('stop', 'skip')
# Below it a scaled gradient uses less of float16's range than an unscaled one; healthy runs stay above 1.
_SMALLEST_SCALE = 2.0**-10


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Checks the terms' gradients before each update, and decides what happens when a term is not finite.

    A term whose *value* is nan or infinity raises :class:`~lckd_mm.distillation.NonFiniteError` after the forward pass,
    with or without this hook. With it, a finite term whose *gradient* is not finite, at one of its taps or at its
    connectors, raises too, before the optimizer's step. The student's own losses and gradients are not checked.
    ``tools/train.py`` adds this hook.

    * ``stop``: the error ends the run. No weight, no statistic in a checkpoint and no file has changed.
    * ``skip``: all ranks skip the whole update (with gradient accumulation, all of its batches): weights, connectors,
      optimizer state and BatchNorm's running statistics stay as they were. The iteration still counts, for schedules
      too, and an EMA averages the same weights again.

    With fp16, GradScaler skips a step whose scaled gradient overflows and lowers the scale; the run ends if the scale
    falls below 2^-10, where the gradient is never finite.

    Cost: one pass over each tap's gradient, and two device synchronisations per step (one with GradScaler); with
    several ranks, as many all-reduces of one byte.

    Args:
        action: 'stop' or 'skip'.
        patience: number of updates skipped in a row; the next one stops.
        interval: iterations between checks of GradScaler's scale.
    Raises:
        TypeError: the model is not a Distiller, or has several optimizers.
    Example: ``default_hooks = dict(non_finite=dict(type='lckd_mm.NonFiniteHook', action='skip', patience=10))``
    """

    priority = 'VERY_HIGH'

    def __init__(self, action: str = 'stop', patience: int = 5, interval: int = 50):
        self.action = arguments.choice('NonFiniteHook', 'action', action, _ACTIONS)
        self.patience = arguments.integer('NonFiniteHook', 'patience', patience)
        self.interval = arguments.integer('NonFiniteHook', 'interval', interval)
        self.watch = GradientWatch()
        self.skipped, self._in_a_row, self._dropping = 0, 0, False
        self._undo = ExitStack()

    def before_train(self, runner) -> None:
        model, wrapper = distiller_of(runner, 'NonFiniteHook'), runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper):
            raise TypeError(f'NonFiniteHook: a Distiller is trained by one OptimWrapper, got {type(wrapper).__name__}')
        self.watch.forget()
        for name, term in model.terms.items():
            term.student.follow = partial(self.watch.follow, name)
            self._undo.callback(setattr, term.student, 'follow', None)
        if _scaler_of(wrapper) is None:
            handle = wrapper.optimizer.register_step_pre_hook(lambda *_: self.watch.check(model.terms))
            self._undo.callback(handle.remove)
        if self.action == 'skip':
            inner = runner.model.train_step
            if 'train_step' in runner.model.__dict__:  # torch.compile's
                self._undo.callback(setattr, runner.model, 'train_step', inner)
            else:
                self._undo.callback(delattr, runner.model, 'train_step')
            runner.model.train_step = partial(self._step, model, inner)

    def _step(self, model, inner: Callable, data: Any, optim_wrapper: OptimWrapper) -> dict:
        count = optim_wrapper._inner_count
        if self._dropping:
            # A further batch of an update that is being skipped.
            return self._drop(optim_wrapper, count)
        restore = saved_buffers(model)
        try:
            outputs = inner(data, optim_wrapper)
        except NonFiniteError as error:
            self._in_a_row += 1
            if self._in_a_row > self.patience:
                raise NonFiniteError(f'{self.patience} updates in a row were skipped, and now: {error}') from error
            self.skipped += 1
            restore()
            self.watch.forget()
            print_log(f'NonFiniteHook: this update is skipped: {error}', 'current', logging.WARNING)
            return self._drop(optim_wrapper, count)
        if optim_wrapper.should_update():
            self._in_a_row = 0
        return outputs

    def _drop(self, optim_wrapper: OptimWrapper, count: int) -> dict:
        # The backward pass counts batches; this batch must count once, whether it ran or not.
        optim_wrapper._inner_count = count + 1
        self._dropping = not optim_wrapper.should_update()
        optim_wrapper.zero_grad()
        return {}

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        scaler = _scaler_of(runner.optim_wrapper)
        if scaler is None:
            return
        if self.every_n_train_iters(runner, self.interval) and scaler.get_scale() < _SMALLEST_SCALE:
            found = ', '.join(f'{term!r} at tap {tap!r}' for term, tap in self.watch.broken()) or 'no tap of a term'
            raise NonFiniteError(
                f'fp16: the loss scale has fallen to {scaler.get_scale():.3g} by iteration {runner.iter + 1}, because '
                f'the scaled gradient is never finite (here at {found}), so no weight is updated; train with '
                "optim_wrapper.dtype='bfloat16', or without amp"
            )
        self.watch.forget()

    def after_train(self, runner) -> None:
        self._undo.close()
        if self.skipped:
            runner.logger.warning(f'NonFiniteHook: {self.skipped} updates were skipped')


class GradientWatch:
    """Records in the backward pass, without synchronising, whether each term's gradient at its taps is finite.

    A finite term can have a non-finite gradient, as the square root does at 0. Each term reads its own alias of a
    feature (:meth:`follow`), so that the gradients of terms that read one tap stay distinct.
    """

    def __init__(self):
        self._flags: dict[tuple[str, str | None], Tensor] = {}

    def follow(self, term: str, tap: str, feature: Feature) -> Feature:
        if not isinstance(feature, Tensor):
            return [self.follow(term, tap, level) for level in feature]
        if not feature.requires_grad:
            return feature
        alias = feature.view_as(feature)
        alias.register_hook(lambda gradient: self._note((term, tap), gradient))
        return alias

    def _note(self, key: tuple[str, str], gradient: Tensor) -> None:
        finite = all_finite([gradient])
        self._flags[key] = finite & self._flags[key] if key in self._flags else finite

    def forget(self) -> None:
        self._flags.clear()

    def broken(self) -> list[tuple[str, str]]:
        """(term, tap) of every recorded non-finite gradient; synchronises the device."""
        return [key for key, finite in self._flags.items() if not finite]

    def check(self, terms: Mapping[str, Term]) -> None:
        """Raise NonFiniteError if a recorded gradient, or one of a term's own parameters, is not finite; then reset."""
        own = {
            (name, None): all_finite(p.grad for p in term.parameters() if p.grad is not None)
            for name, term in terms.items()
        }
        device = next(iter(self._flags.values())).device if self._flags else torch.device('cpu')
        self._flags |= own
        noted = [flag.to(device, non_blocking=True) for flag in self._flags.values()]
        if on_all_ranks(torch.stack(noted).all()):
            self.forget()
            return
        broken = self.broken()
        self.forget()
        if not broken:
            raise NonFiniteError(f'the gradient of a term is not finite in {iteration()} on another rank; {ADVICE}')
        term, tap = broken[0]
        where = f'student tap {tap!r}' if tap else "the term's own parameters"
        if not tap and is_distributed():
            where += ', whose gradient is the sum over all ranks'
        raise NonFiniteError(
            f'term {term!r} is finite in {iteration()}, but its gradient holds nan or infinity at {where}: the '
            f'derivative of {terms[term].loss_name} is not finite there (a root or logarithm of 0, a '
            f'division by a tiny number), or its weight is too large; {ADVICE}'
        )


def _scaler_of(wrapper: OptimWrapper) -> Any:
    """The GradScaler in use, or None."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    return scaler if scaler is not None and scaler.is_enabled() else None
