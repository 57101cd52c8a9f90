"""Term: one summand of the objective: select features, connect them, compare them, weight the result."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import arguments
from ..contexts import untracked_statistics
from ..hosts import owner_head
from ..registry import build_registered, registered_class
from ..taps import FeatureTaps
from .side import Connected, Feature, Side

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
        net: the student; the head that owns the first tap is passed to a loss that has ``adapt``.
        before: the earlier terms, whose connectors this one may borrow.
        loss: config of a registered loss, a module with ``forward(student, teacher)`` that may also take
            ``data_samples``, ``raw_student`` and ``raw_teacher`` (the features before the connectors, one per tap),
            ``teacher_connectors``, ``inputs`` (the batch of images) and ``replay``: a function that reruns both nets on
            other images and returns the connected (student, teacher) features. If its constructor takes ``channels``,
            it gets those of the teacher's taps. A loss that wraps another holds it as ``wrapped`` and passes on the
            extras that the inner one asks for.
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
        names = self.student.names, self.teacher.names
        if self.student.single != self.teacher.single:
            raise ValueError(
                f"term {name!r}: one side's taps are a name, the other's a list of names; write both as lists, or "
                f'both as names (student {names[0]}, teacher {names[1]})'
            )
        if len(names[0]) != len(names[1]):
            raise ValueError(f'term {name!r}: {len(names[0])} student taps, but {len(names[1])} teacher taps')
        self.loss = build_registered(self._with_channels(loss), f'term {name!r}: loss')
        self._wanted = self._extras()
        for key, config in (('connectors', connector), ('teacher_connectors', teacher_connector)):
            if self.replays and isinstance(config, str):
                raise ValueError(
                    f'term {name!r}: {type(self.loss).__name__} runs the nets again, so it cannot share the {key} of '
                    f'{config!r}; give it its own'
                )
        self.student.connect(connector, self.teacher, {n: (t.student, t.teacher) for n, t in before.items()})
        self.teacher.connect(teacher_connector, self.student, {n: (t.teacher, t.student) for n, t in before.items()})
        self.connectors, self.teacher_connectors = self.student.connectors, self.teacher.connectors
        self._check_connectors()
        if hasattr(_innermost(self.loss), 'adapt'):
            _innermost(self.loss).adapt(owner_head(net, taps[0].addresses[names[0][0]].path))

    def forward(self, batch: Batch, done: Connected) -> Tensor:
        """The weighted term, a scalar in float32 or wider whatever the autocast state.

        ``done`` holds the earlier terms' connected features, which this one may borrow; this term adds its own.
        """
        first = next(iter(batch.student.values()))
        with torch.autocast((first if isinstance(first, Tensor) else first[0]).device.type, enabled=False):
            raw, raw_teacher, connected, target = self._select(batch.student, batch.teacher, done)
            done[self.name] = dict(zip(self.student.names, connected)), dict(zip(self.teacher.names, target))

            def replay(images: Tensor) -> tuple[Any, Any]:
                features = batch.replay(images, self.student.names, self.teacher.names)
                with untracked_statistics(self.connectors):
                    _, _, ours, theirs = self._select(*features, {})
                return self.student.shaped(ours), self.teacher.shaped(theirs)

            extras = {
                'data_samples': batch.data_samples,
                'raw_student': raw,
                'raw_teacher': raw_teacher,
                'teacher_connectors': self.teacher_connectors,
                'inputs': batch.inputs,
                'replay': replay,
            }
            compared = self.student.shaped(connected), self.teacher.shaped(target)
            return self.weight * self.scale * self.loss(*compared, **{key: extras[key] for key in self._wanted})

    @property
    def replays(self) -> bool:
        """Whether its loss runs the nets again."""
        return 'replay' in self._wanted

    def bind(self, teacher: nn.Module) -> None:
        """Let connectors and the loss read the teacher's layers; called after building and again after loading it.

        A loss that has ``bind`` is given the teacher's tapped modules, in tap order, and the term's name.
        """
        taps = self.teacher.taps
        for connector, tap in zip(self.teacher_connectors, self.teacher.names):
            if hasattr(connector, 'bind'):
                norm = trace.norm if (trace := taps.traces.get(tap)) else None
                connector.bind(teacher.get_submodule(norm) if norm else None, f'term {self.name!r}, tap {tap!r}')
        if hasattr(_innermost(self.loss), 'bind'):
            modules = [teacher.get_submodule(taps.addresses[tap].path) for tap in self.teacher.names]
            _innermost(self.loss).bind(modules, f'term {self.name!r}')

    def waiting(self) -> list[tuple[str, nn.Module]]:
        """Connectors that need training images before the first iteration, as (teacher tap, connector)."""
        pairs = zip(self.teacher.names, self.teacher_connectors)
        return [(tap, connector) for tap, connector in pairs if getattr(connector, 'waits_for_data', False)]

    def _select(self, student: Features, teacher: Features, done: Connected) -> tuple[list[Feature], ...]:
        """The features (student raw, teacher raw, student connected, teacher connected)."""
        raw, raw_teacher = self.student.raw(student), self.teacher.raw(teacher)
        connected = self.student.connected(raw, raw_teacher, done)
        return raw, raw_teacher, connected, self.teacher.connected(raw_teacher, raw, done)

    def _with_channels(self, config: Mapping) -> Mapping:
        kind = registered_class(config, f'term {self.name!r}: loss')
        parameters = inspect.signature(kind.__init__).parameters
        if 'loss' in parameters and isinstance(config.get('loss'), Mapping):
            config = {**config, 'loss': self._with_channels(config['loss'])}
        if 'channels' not in parameters or 'channels' in config:
            return config
        advice = f"loss=dict(type='{kind.__name__}', channels=[…])"
        return {**config, 'channels': self.teacher.widths(f'term {self.name!r}: loss', advice)}

    def _extras(self) -> list[str]:
        """The extras that the loss asks for, by naming them in its forward's signature after (student, teacher)."""
        loss = _innermost(self.loss)
        parameters = list(inspect.signature(loss.forward).parameters)
        if len(parameters) < 2:
            raise ValueError(f'term {self.name!r}: {type(loss).__name__} does not take (student, teacher)')
        known = ('data_samples', 'raw_student', 'raw_teacher', 'teacher_connectors', 'inputs', 'replay')
        return [p for p in parameters[2:] if p in known]

    def _check_connectors(self) -> None:
        if any(hasattr(connector, key) for connector in self.connectors for key in ('bind', 'waits_for_data')):
            kind = type(self.connectors[0]).__name__
            raise ValueError(f"term {self.name!r}: {kind} looks at the teacher's layers; write it as teacher_connector")
        for connector in self.teacher_connectors:
            # A connector with online=True is trained only by a loss that reads it.
            if getattr(connector, 'online', False) and 'teacher_connectors' not in self._wanted:
                raise ValueError(
                    f'term {self.name!r}: a {type(connector).__name__} with online=True is trained by a term of its '
                    "own, with loss=dict(type='lckd_mm.ReconstructionLoss'); put it there, and name that term here as "
                    'teacher_connector'
                )


def build_term(
    name: Any, config: Any, taps: tuple[FeatureTaps, FeatureTaps], net: nn.Module, before: Mapping[str, Term]
) -> Term:
    """A :class:`Term` from its config; KeyError for an unknown key, with the closest one."""
    if not isinstance(name, str) or not name.startswith('loss_'):
        raise ValueError(f"term {name!r}: its name must start with 'loss_', since only such keys are trained")
    if re.search(r'[.\s]', name):
        raise ValueError(f'term {name!r}: its name must be without dots and spaces, since it names a module')
    if not isinstance(config, Mapping):
        raise ValueError(f'term {name!r}: expected a dict(loss=…, on=…, weight=…), got {config!r}')
    parameters = inspect.signature(Term).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for key in config:
        if key not in known:
            closest = ''.join(f'; did you mean {k!r}?' for k in difflib.get_close_matches(str(key), known, 1))
            raise KeyError(f'term {name!r}: unknown key {key!r}, expected {", ".join(known)}{closest}')
    if 'loss' not in config:
        raise KeyError(f"term {name!r}: no loss, expected loss=dict(type='lckd_mm.LipschitzLoss') or the like")
    return Term(name, taps, net, before, **config)


def _innermost(loss: nn.Module) -> nn.Module:
    while hasattr(loss, 'wrapped'):
        loss = loss.wrapped
    return loss
