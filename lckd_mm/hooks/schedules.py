"""Hooks that change the objective over time: weight schedules, and a warm-up of the connectors."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from torch import Tensor

from .. import arguments
from ..registry import HOOKS
from .distillation import distiller_of, terms_of


@HOOKS.register_module()
class LossWeightHook(Hook):
    r"""Schedules the weight of one term: its current weight is its own weight times a factor that depends on time t.

    * ``constant``: ``factor``.
    * ``step``: ``gamma`` to the power of the number of ``milestones`` at or before t.
    * ``linear``, ``cosine``: from ``start`` at ``begin`` to ``stop`` at ``end``, constant before and after; cosine is
      :math:`stop + (start - stop) (1 + \cos \pi p) / 2` with p the fraction of the way.
    * ``stop``: 1 before ``end``, then 0.

    The factor depends only on the runner's iteration, so it survives resume. The current weight is logged as
    ``weight_<method>`` (``loss_kd`` gives ``weight_kd``).

    Args:
        term: name of the term.
        schedule: one of the names above.
        by: 'iter', or 'epoch': a pass over the training data, in iteration-based loops too.
        begin, end, milestones: times in units of ``by``; a float between 0 and 1 is a fraction of the whole training.
    Raises:
        ValueError: an unknown schedule, unit or term, missing or negative values, ``end`` not after ``begin``, or a
            second schedule for the term.
    Example: ``custom_hooks = [dict(type='lckd_mm.LossWeightHook', term='loss_kd', schedule='cosine', end=0.5)]``
    """

    SCHEDULES = ('constant', 'step', 'linear', 'cosine', 'stop')

    def __init__(
        self,
        term: str,
        schedule: str,
        by: str = 'iter',
        begin: float = 0,
        end: float | None = None,
        start: float = 0.0,
        stop: float = 1.0,
        factor: float = 1.0,
        milestones: Sequence[float] = (),
        gamma: float = 0.1,
    ):
        who = f'LossWeightHook for {term!r}'
        arguments.choice(who, 'schedule', schedule, self.SCHEDULES)
        arguments.choice(who, 'by', by, ('iter', 'epoch'))
        if schedule in ('linear', 'cosine', 'stop') and end is None:
            raise ValueError(f'{who}: the schedule {schedule!r} needs end')
        times = dict(begin=begin, end=0 if end is None else end)
        for name, value in dict(start=start, stop=stop, factor=factor, gamma=gamma, **times).items():
            arguments.number(who, name, value, at_least=0)
        for milestone in arguments.sequence(who, 'milestones', milestones, 'numbers'):
            arguments.number(who, 'milestones', milestone, at_least=0)
        if schedule == 'step' and not milestones:
            raise ValueError(f'{who}: the schedule step needs milestones')
        self.term, self.schedule, self.by = term, schedule, by
        self.begin, self.end, self.milestones = begin, end, milestones
        self.start, self.stop, self.factor, self.gamma = start, stop, factor, gamma
        #: Iterations of the training and of an epoch; known once training has begun.
        self.total, self.epoch = math.inf, 1

    def before_train(self, runner) -> None:
        terms = terms_of(runner, 'LossWeightHook')
        arguments.choice('LossWeightHook', 'term', self.term, terms)
        count = sum(isinstance(hook, LossWeightHook) and hook.term == self.term for hook in runner.hooks)
        if count > 1:
            raise ValueError(f'LossWeightHook: the term {self.term!r} has {count} schedules; keep one')
        self.total, self.epoch = runner.max_iters, epoch_length(runner)
        if self.end is not None and self._time(self.end) <= self._time(self.begin):
            raise ValueError(f'LossWeightHook for {self.term!r}: end={self.end} must come after begin={self.begin}')

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        unit = 1 if self.by == 'iter' else self.epoch
        for term in terms_of(runner, 'LossWeightHook')[self.term]:
            term.scale = self.factor_at(runner.iter // unit * unit)
        name = self.term.removeprefix('loss_')
        runner.message_hub.update_scalar(f'train/weight_{name}', term.weight * term.scale)

    def factor_at(self, time: int) -> float:
        """The factor at an iteration; epochs and fractions are known once training has begun."""
        if self.schedule == 'constant':
            return self.factor
        if self.schedule == 'step':
            return self.gamma ** bisect_right(sorted(map(self._time, self.milestones)), time)
        begin, end = self._time(self.begin), self._time(self.end)
        if self.schedule == 'stop':
            return 1.0 if time < end else 0.0
        part = min(max((time - begin) / (end - begin), 0.0), 1.0)
        if self.schedule == 'linear':
            return self.start + (self.stop - self.start) * part
        return self.stop + (self.start - self.stop) * (1 + math.cos(math.pi * part)) / 2

    def _time(self, value: float) -> float:
        return iterations(value, self.by, self.total, self.epoch)


@HOOKS.register_module()
class ConnectorWarmupHook(Hook):
    """Trains only the connectors at first: the student's weights are fixed, so random connectors cannot affect them.

    Until ``end`` the student's parameters are restored after every update; then their optimizer state is deleted.
    BatchNorm's running statistics and schedules advance, as in the authors' code. With gradient accumulation, choose
    ``end`` at an update.

    Args:
        end: end of the warm-up, in units of ``by``; a float between 0 and 1 is a fraction of the whole training.
        by: 'iter', or 'epoch': a pass over the training data, in iteration-based loops too.
    Raises:
        ValueError: an unknown unit, an ``end`` not before the training's end, or no connectors to train.
    Source: the first epoch of OFD's segmentation recipe (Heo et al., ICCV 2019, authors' code).
    Example: ``custom_hooks = [dict(type='lckd_mm.ConnectorWarmupHook', end=1, by='epoch')]``
    """

    priority = 'VERY_HIGH'

    def __init__(self, end: float = 1, by: str = 'epoch'):
        self.end = arguments.number('ConnectorWarmupHook', 'end', end, above=0)
        self.by = arguments.choice('ConnectorWarmupHook', 'by', by, ('iter', 'epoch'))
        self._last = 0
        self._before: list[tuple[torch.nn.Parameter, Tensor]] = []

    def before_train(self, runner) -> None:
        model = distiller_of(runner, 'ConnectorWarmupHook')
        if not any(p.requires_grad for p in model.terms.parameters()):
            raise ValueError('ConnectorWarmupHook: no term has connectors to train; add one, or remove the hook')
        self._last = math.ceil(iterations(self.end, self.by, runner.max_iters, epoch_length(runner)))
        if self._last >= runner.max_iters:
            raise ValueError(
                f'ConnectorWarmupHook: end={self.end} leaves none of the {runner.max_iters} iterations to train the '
                'student; make it smaller'
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter < self._last:
            student = distiller_of(runner, 'ConnectorWarmupHook').student
            self._before = [(p, p.detach().clone()) for p in student.parameters() if p.requires_grad]

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        for parameter, value in self._before:
            parameter.copy_(value)
        if self._before and runner.iter + 1 >= self._last:
            for parameter, _ in self._before:
                runner.optim_wrapper.optimizer.state.pop(parameter, None)
        self._before = []


def iterations(time: float, by: str, total: int, epoch: int = 1) -> float:
    """A time in iterations, given in iterations or epochs (``by``), or as a float between 0 and 1, of all ``total``."""
    if isinstance(time, float) and 0 < time < 1:
        return time * total
    return time * (epoch if by == 'epoch' else 1)


def epoch_length(runner) -> int:
    """Iterations that all ranks together need for a pass over the training data."""
    loader = runner.train_dataloader
    if isinstance(loader.sampler, InfiniteSampler):
        # Its length is the whole dataset's, whatever the number of ranks.
        return max(1, math.ceil(len(loader.dataset) / (loader.batch_size * get_world_size())))
    return max(1, len(loader))
