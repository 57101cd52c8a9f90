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
        ValueError: an unknown schedule or unit, missing or negative values, ``end`` not after ``begin``, or a second
            schedule for the term. KeyError: no such term.
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
        arguments.text('LossWeightHook', 'term', term)
        arguments.choice(who, 'schedule', schedule, self.SCHEDULES)
        arguments.choice(who, 'by', by, ('iter', 'epoch'))
        if schedule in ('linear', 'cosine', 'stop') and end is None:
            raise ValueError(f'{who}: the schedule {schedule!r} needs end')
        for name, value in dict(start=start, stop=stop, factor=factor, gamma=gamma, begin=begin).items():
            arguments.number(who, name, value, at_least=0)
        if end is not None:
            arguments.number(who, 'end', end, at_least=0)
        milestones = arguments.listed(who, 'milestones', milestones, 'times')
        for time in milestones:
            arguments.number(who, 'milestones', time, at_least=0)
        if schedule == 'step' and not milestones:
            raise ValueError(f'{who}: the schedule step needs milestones')
        self.term, self.schedule, self.by = term, schedule, by
        self.begin, self.end, self.milestones = begin, end, milestones
        self.start, self.stop, self.factor, self.gamma = start, stop, factor, gamma
        self.total = math.inf

    def before_train(self, runner) -> None:
        terms = terms_of(runner, 'LossWeightHook')
        if self.term not in terms:
            raise KeyError(f'LossWeightHook: unknown term {self.term!r}, the terms are {", ".join(terms)}')
        others = [h for h in runner.hooks if isinstance(h, LossWeightHook) and h.term == self.term and h is not self]
        if others:
            raise ValueError(f'LossWeightHook: the term {self.term!r} has {len(others) + 1} schedules; keep one')
        self.total = runner.max_iters / (1 if self.by == 'iter' else epoch_length(runner))
        begin, end = self._time(self.begin), self._time(self.end)
        if end is not None and end <= begin:
            raise ValueError(f'LossWeightHook for {self.term!r}: end ({end:g}) must come after begin ({begin:g})')

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        time = runner.iter if self.by == 'iter' else runner.iter // epoch_length(runner)
        for term in terms_of(runner, 'LossWeightHook')[self.term]:
            term.scale = self.factor_at(time)
        name = self.term.removeprefix('loss_')
        runner.message_hub.update_scalar(f'train/weight_{name}', term.weight * term.scale)

    def factor_at(self, time: float) -> float:
        """The factor at a time in units of ``by``; times given as fractions need the training to have begun."""
        begin, end = self._time(self.begin), self._time(self.end)
        if self.schedule == 'constant':
            return self.factor
        if self.schedule == 'step':
            return self.gamma ** bisect_right(sorted(map(self._time, self.milestones)), time)
        if self.schedule == 'stop':
            return 1.0 if time < end else 0.0
        part = min(max((time - begin) / (end - begin), 0.0), 1.0)
        if self.schedule == 'linear':
            return self.start + (self.stop - self.start) * part
        return self.stop + (self.start - self.stop) * (1 + math.cos(math.pi * part)) / 2

    def _time(self, value: float | None) -> float | None:
        return value * self.total if isinstance(value, float) and 0 < value < 1 else value


@HOOKS.register_module()
class ConnectorWarmupHook(Hook):
    """Trains only the connectors at first: the student's weights are fixed, so random connectors cannot affect them.

    Until ``end`` the student's parameters are restored after every update; their optimizer state is deleted when the
    warm-up is over. BatchNorm's running statistics and schedules still advance, as in the authors' code.
    With gradient accumulation, choose ``end`` at an update.

    Args:
        end: end of the warm-up, in units of ``by``; a float between 0 and 1 is a fraction of the whole training.
        by: 'iter', or 'epoch': a pass over the training data, in iteration-based loops too.
    Raises:
        ValueError: an unknown unit, an ``end`` not above 0 or not before the training's end, or no connectors to train.
    Source: the first epoch of OFD's segmentation recipe (Heo et al., ICCV 2019, authors' code).
    """

    priority = 'VERY_HIGH'

    def __init__(self, end: float = 1, by: str = 'epoch'):
        arguments.choice('ConnectorWarmupHook', 'by', by, ('iter', 'epoch'))
        arguments.number('ConnectorWarmupHook', 'end', end, above=0)
        self.end, self.by = end, by
        self._last = 0
        self._before: list[tuple[torch.nn.Parameter, Tensor]] = []

    def before_train(self, runner) -> None:
        model = distiller_of(runner, 'ConnectorWarmupHook')
        if not any(p.requires_grad for p in model.terms.parameters()):
            raise ValueError(
                'ConnectorWarmupHook: no term has connectors to train; give one connector=dict(type=...), or take the '
                'hook away'
            )
        unit = 1 if self.by == 'iter' else epoch_length(runner)
        part = isinstance(self.end, float) and self.end < 1
        self._last = math.ceil(self.end * (runner.max_iters if part else unit))
        if self._last >= runner.max_iters:
            raise ValueError(
                f'ConnectorWarmupHook: its {self._last} iterations are all of the training ({runner.max_iters}), and '
                'the student would never be trained; make end smaller'
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


def epoch_length(runner) -> int:
    """Iterations that all ranks together need for a pass over the training data."""
    loader = runner.train_dataloader
    if isinstance(loader.sampler, InfiniteSampler):
        # Its length is the whole dataset's, whatever the number of ranks.
        return max(1, math.ceil(len(loader.dataset) / (loader.batch_size * get_world_size())))
    return max(1, len(loader))
