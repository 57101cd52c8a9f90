"""Term: one summand of the objective: select features, connect them, compare them, weight the result."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import arguments
from ..connectors import Connector
from ..contexts import untracked_statistics
from ..hosts import owner_head
from ..losses.base import Loss, PlainLoss
from ..registry import build_registered, registered_class
from ..taps import FeatureTaps
from .side import Connected, Feature, Side, flat, levels

Features = Mapping[str, Feature]


@dataclass(eq=False)
class Batch:
    """One batch as the terms see it: both nets' features by tap, and the extras that a loss may ask for by name."""

    student: Features
    teacher: Features
    inputs: Tensor | None = None
    data_samples: list | None = None
    #: The student's own losses.
    losses: Mapping[str, Any] = field(default_factory=dict)
    #: Maps (other images, student tap names, teacher tap names) to both nets' features, by rerunning both nets.
    replay: Callable[[Tensor, list[str], list[str]], tuple[Features, Features]] | None = None


class Term(nn.Module):
    """One distillation term: ``weight * loss(connect(student taps), connect(teacher taps))``.

    Args:
        name: its key in the loss dict; starts with ``loss_``.
        taps: the traced taps of student and teacher; they give names, shapes and channels.
        net: the student; the loss may read settings from the head that owns the first tap.
        before: the earlier terms, whose connectors this one may borrow.
        loss: config of a registered loss; :class:`~lckd_mm.losses.Loss` says what it is given. A module that is not a
            Loss is taken as a loss of pairs.
        on: a tap's name, or a list of them, for both nets; ``student`` and ``teacher`` name them separately.
        weight: non-negative. A weight of 0 multiplies and does not skip: a skipped connector would be an unused
            parameter under DDP.
        connector: config of the student-side connector, one instance per tap; None compares the raw features. The name
            of another term borrows its connectors: the same features, computed once.
        teacher_connector: the same for the teacher's features; borrowed ones are detached.
    Raises:
        KeyError: an unknown tap, loss or connector. ValueError: a bad weight, name or number of taps.
    """

    def __init__(
        self,
        name: str,
        taps: tuple[FeatureTaps, FeatureTaps],
        net: nn.Module,
        before: Mapping[str, 'Term'],
        *,
        loss: Any,
        on: Any = None,
        student: Any = None,
        teacher: Any = None,
        weight: float = 1.0,
        connector: Any = None,
        teacher_connector: Any = None,
    ):
        super().__init__()
        self.name = name
        self.weight = arguments.number(f'term {name!r}', 'weight', weight, at_least=0)
        #: Factor on the weight; 1 unless a LossWeightHook sets it.
        self.scale = 1.0
        #: The two halves: student and teacher.
        self.student = Side(name, 'connector', on if student is None else student, taps[0])
        self.teacher = Side(name, 'teacher_connector', on if teacher is None else teacher, taps[1])
        counts = len(self.student.names), len(self.teacher.names)
        if counts[0] != counts[1]:
            raise ValueError(f'term {name!r}: {counts[0]} student taps, but {counts[1]} teacher taps')
        self.loss = build_registered(self._with_channels(loss), f'term {name!r}: loss')
        #: The name of its class, for error messages.
        self.loss_name = type(self.loss).__name__
        if not isinstance(self.loss, Loss):
            self.loss = PlainLoss(self.loss)
        #: What the loss is given beyond the two features.
        self.extras = self.loss.extras()
        self.student.connect(connector, self.teacher, {n: (t.student, t.teacher) for n, t in before.items()})
        self.teacher.connect(teacher_connector, self.student, {n: (t.teacher, t.student) for n, t in before.items()})
        self.connectors, self.teacher_connectors = self.student.connectors, self.teacher.connectors
        self.loss.read_head(owner_head(net, taps[0].addresses[self.student.names[0]].path))

    def forward(self, batch: Batch, done: Connected) -> Tensor:
        """The weighted term, a scalar in float32 or wider whatever the autocast state.

        ``done`` holds the earlier terms' connected features, which this one may borrow; this term adds its own.
        """
        first = levels(next(iter(batch.student.values())))[0]
        with torch.autocast(first.device.type, enabled=False):
            raw, raw_teacher, ours, theirs = self._select(batch.student, batch.teacher, done)
            done[self.name] = dict(zip(self.student.names, ours)), dict(zip(self.teacher.names, theirs))
            connectors = self.teacher_connectors or [None] * len(theirs)
            extras = dict(
                data_samples=batch.data_samples,
                inputs=batch.inputs,
                replay=partial(self._replay, batch),
                raw_student=flat(raw),
                raw_teacher=flat(raw_teacher),
                teacher_connector=[c for c, feature in zip(connectors, theirs) for _ in levels(feature)],
            )
            extras = {key: extras[key] for key in self.extras}
            return self.weight * self.scale * self.loss(flat(ours), flat(theirs), **extras)

    @property
    def replays(self) -> bool:
        """Whether its loss runs the nets again."""
        return 'replay' in self.extras

    def bind(self, teacher: nn.Module) -> None:
        """Let connectors and the loss read the teacher's layers; called after building and again after loading it."""
        taps = self.teacher.taps
        for connector, tap in zip(self.teacher_connectors, self.teacher.names):
            norm = trace.norm if (trace := taps.traces.get(tap)) else None
            connector.bind(teacher.get_submodule(norm) if norm else None, f'term {self.name!r}, tap {tap!r}')
        modules = [teacher.get_submodule(taps.addresses[tap].path) for tap in self.teacher.names]
        self.loss.bind(modules, f'term {self.name!r}')

    def waiting(self) -> list[tuple[str, Connector]]:
        """Connectors that need training images before the first iteration, as (teacher tap, connector)."""
        pairs = zip(self.teacher.names, self.teacher_connectors)
        return [(tap, connector) for tap, connector in pairs if connector.waits_for_data]

    def _select(self, student: Features, teacher: Features, done: Connected) -> tuple[list[Feature], ...]:
        """The features (student raw, teacher raw, student connected, teacher connected)."""
        raw, raw_teacher = self.student.raw(student), self.teacher.raw(teacher)
        connected = self.student.connected(raw, raw_teacher, done)
        return raw, raw_teacher, connected, self.teacher.connected(raw_teacher, raw, done)

    def _replay(self, batch: Batch, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Both nets' connected features on other images."""
        features = batch.replay(images, self.student.names, self.teacher.names)
        with untracked_statistics(self.connectors):
            _, _, ours, theirs = self._select(*features, {})
        return flat(ours), flat(theirs)

    def _with_channels(self, config: Mapping) -> Mapping:
        kind = registered_class(config, f'term {self.name!r}: loss')
        parameters = inspect.signature(kind).parameters
        if 'loss' in parameters and isinstance(config.get('loss'), Mapping):
            config = {**config, 'loss': self._with_channels(config['loss'])}
        if 'channels' not in parameters or 'channels' in config:
            return config
        return {**config, 'channels': self.teacher.widths(f"loss=dict(type='{kind.__name__}', channels=[…])")}
