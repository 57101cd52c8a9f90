"""Term: one line of the objective: select, connect, compare, weigh."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import arguments
from ..contexts import untracked_statistics
from ..hosts import owner_head
from ..registry import build_registered, registered_class
from ..taps import FeatureTaps

Feature = Tensor | list[Tensor]
#: (images, student tap names, teacher tap names) to both nets' features.
Replay = Callable[[Tensor, list[str], list[str]], tuple[dict[str, Feature], dict[str, Feature]]]
#: (tap name, the student's feature) to the same feature, of which the gradient is looked at.
Follow = Callable[[str, Feature], Feature]
_KEYS = ('loss', 'on', 'student', 'teacher', 'weight', 'connector', 'teacher_connector')
# What a loss may ask for beyond (student, teacher), by naming it in the signature of its forward.
_EXTRAS = ('data_samples', 'raw_student', 'raw_teacher', 'teacher_connectors', 'inputs', 'replay')


class Term(nn.Module):
    """One distillation term: ``weight * loss(connect(student taps), connect(teacher taps))``.

    Args:
        name: its key in the loss dict; starts with ``loss_``.
        loss: config of a registered loss, a module ``forward(student, teacher)`` that may also take ``data_samples``,
            ``raw_student`` and ``raw_teacher`` (the features before the connectors, one a tap), ``teacher_connectors``,
            ``inputs`` (the batch of images) and ``replay``: a function of other images to (student, teacher),
            connected, by another pass of both nets. Where its constructor has ``channels``, they are the teacher's
            taps'. A loss around another one has that as its attribute ``wrapped`` and gives it what it asks for.
        on: a tap's name, or a list of them, of both nets; ``student`` and ``teacher`` name them apart.
        weight: not negative. A weight of 0 multiplies, it does not skip: a skipped connector would be an unused
            parameter under DDP.
        connector: config of the student-side connector, one instance a tap; None compares the raw features. The name
            of another term shares its connectors: the same features, made once.
        teacher_connector: the same for the teacher's features; shared ones come without gradient.
        student_taps, teacher_taps: traced taps, from which names, shapes and channels are taken.
        student: the student, of which the head that owns the tap is shown to losses that have ``adapt``.
        others: the terms before this one.
    Raises:
        KeyError: an unknown tap, loss, connector or key. ValueError: a bad weight, name or count of taps.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        student_taps: FeatureTaps,
        teacher_taps: FeatureTaps,
        student: nn.Module,
        others: Mapping[str, 'Term'] | None = None,
    ):
        super().__init__()
        self.name = name
        if not isinstance(name, str) or not name.startswith('loss_'):
            raise ValueError(f"term {name!r}: its name must start with 'loss_', since only such keys are trained")
        if re.search(r'[.\s]', name):
            raise ValueError(f'term {name!r}: its name must be without dots and spaces, since it names a module')
        if not isinstance(config, Mapping):
            raise ValueError(f'term {name!r}: expected a dict(loss=…, on=…, weight=…), got {config!r}')
        unknown = [key for key in config if key not in _KEYS]
        if unknown:
            raise KeyError(f'term {name!r}: unknown key {unknown[0]!r}, expected {", ".join(_KEYS)}')
        if 'loss' not in config:
            raise KeyError(f"term {name!r}: no loss, expected loss=dict(type='lckd_mm.LipschitzLoss') or the like")
        self.weight = config.get('weight', 1.0)
        #: Factor on the weight, 1 unless a LossWeightHook sets it.
        self.scale = 1.0
        arguments.number(f'term {name!r}', 'weight', self.weight, at_least=0)
        self.student_names, self.single = self._names(config, 'student', student_taps)
        self.teacher_names, teacher_single = self._names(config, 'teacher', teacher_taps)
        if self.single != teacher_single:
            raise ValueError(
                f"term {name!r}: one side's taps are a name, the other's a list of names; write both as lists, or "
                f'both as names (student {self.student_names}, teacher {self.teacher_names})'
            )
        if len(self.student_names) != len(self.teacher_names):
            raise ValueError(
                f'term {name!r}: {len(self.student_names)} student taps, but {len(self.teacher_names)} teacher taps'
            )
        self.loss = build_registered(self._with_channels(config['loss'], teacher_taps), f'term {name!r}: loss')
        self._wanted = self._extras()
        pairs = list(zip(self.student_names, self.teacher_names, strict=True))
        #: The term whose connectors this one shares.
        self.shares: str | None = None
        if isinstance(config.get('connector'), str):
            if self.replays:
                raise ValueError(
                    f'term {name!r}: {type(self.loss).__name__} runs the nets again, so it cannot share the connectors '
                    f'of {config["connector"]!r}; give it its own'
                )
            self.shares = self._shared('connector', config['connector'], others or {})
            config = {**config, 'connector': None}
        #: The term whose teacher's connectors this one shares.
        self.teacher_shares: str | None = None
        if isinstance(config.get('teacher_connector'), str):
            if self.replays:
                raise ValueError(
                    f'term {name!r}: {type(self.loss).__name__} runs the nets again, so it cannot share the '
                    f'teacher_connectors of {config["teacher_connector"]!r}; give it its own'
                )
            self.teacher_shares = self._shared('teacher_connector', config['teacher_connector'], others or {})
            config = {**config, 'teacher_connector': None}
        self.connectors = self._connectors(config, 'connector', pairs, student_taps, teacher_taps)
        flipped = [(t, s) for s, t in pairs]
        self.teacher_connectors = self._connectors(config, 'teacher_connector', flipped, teacher_taps, student_taps)
        if any(hasattr(connector, key) for connector in self.connectors for key in ('bind', 'waits_for_data')):
            kind = type(self.connectors[0]).__name__
            raise ValueError(f"term {name!r}: {kind} looks at the teacher's layers; write it as teacher_connector")
        self._refuse_untrained()
        self._teacher_norms = [taps.norm if (taps := teacher_taps.traces.get(n)) else None for n in self.teacher_names]
        self._teacher_paths = [teacher_taps.addresses[n].path for n in self.teacher_names]
        if hasattr(_innermost(self.loss), 'adapt'):
            _innermost(self.loss).adapt(owner_head(student, student_taps.addresses[self.student_names[0]].path))

    def forward(
        self,
        student: Mapping[str, Feature],
        teacher: Mapping[str, Feature],
        data_samples: list | None = None,
        observed: dict[str, dict[str, Feature]] | None = None,
        inputs: Tensor | None = None,
        replay: Replay | None = None,
        follow: Follow | None = None,
        targets: dict[str, dict[str, Feature]] | None = None,
    ) -> Tensor:
        """The weighted term, a scalar of at least float32 whatever the autocast state.

        ``observed`` is filled with the student's connected features, ``targets`` with the teacher's, by term and tap
        name; they hold those of the terms before, which this one may share. ``replay`` gives both nets' taps of these
        names for other images. The student's features go through ``follow``.
        """
        device = next(iter(_tensors(next(iter(student.values()))))).device.type
        with torch.autocast(device, enabled=False):
            raw, raw_teacher, connected, target = self._select(student, teacher, observed, follow, targets)
            if observed is not None:
                observed[self.name] = dict(zip(self.student_names, connected, strict=True))
            if targets is not None:
                targets[self.name] = dict(zip(self.teacher_names, target, strict=True))

            def again(images: Tensor) -> tuple[Feature, Feature]:
                features = replay(images, self.student_names, self.teacher_names)
                with untracked_statistics(self.connectors):
                    _, _, ours, theirs = self._select(*features, follow=follow)
                return self._shaped(ours), self._shaped(theirs)

            extras = {
                'data_samples': data_samples,
                'raw_student': raw,
                'raw_teacher': raw_teacher,
                'teacher_connectors': self.teacher_connectors,
                'inputs': inputs,
                'replay': again,
            }
            value = self.loss(
                self._shaped(connected), self._shaped(target), **{key: extras[key] for key in self._wanted}
            )
            return self.weight * self.scale * value

    @property
    def replays(self) -> bool:
        """Whether its loss runs the nets again."""
        return 'replay' in self._wanted

    def _select(
        self,
        student: Mapping[str, Feature],
        teacher: Mapping[str, Feature],
        observed: Mapping[str, Mapping[str, Feature]] | None = None,
        follow: Follow | None = None,
        targets: Mapping[str, Mapping[str, Feature]] | None = None,
    ) -> tuple[list[Feature], list[Feature], list[Feature], list[Feature]]:
        """Both nets' features as they are, and both connected."""
        follow = follow or (lambda name, feature: feature)
        raw = [follow(name, _widen(student[name])) for name in self.student_names]
        raw_teacher = [_widen(teacher[name]) for name in self.teacher_names]
        if self.shares is None:
            connected = _connect(self.connectors, raw, raw_teacher)
        else:
            connected = [follow(name, observed[self.shares][name]) for name in self.student_names]
        if self.teacher_shares is None:
            target = _connect(self.teacher_connectors, raw_teacher, raw)
        else:
            target = [_detached(targets[self.teacher_shares][name]) for name in self.teacher_names]
        return raw, raw_teacher, connected, target

    def _shaped(self, features: list[Feature]) -> Feature | list[Feature]:
        return features[0] if self.single else features

    def _with_channels(self, config: Mapping, teacher_taps: FeatureTaps) -> Mapping:
        kind = registered_class(config, f'term {self.name!r}: loss')
        parameters = inspect.signature(kind.__init__).parameters
        if 'loss' in parameters and isinstance(config.get('loss'), Mapping):
            config = {**config, 'loss': self._with_channels(config['loss'], teacher_taps)}
        if 'channels' not in parameters or 'channels' in config:
            return config
        for tap in self.teacher_names:
            if tap not in teacher_taps.traces:
                raise ValueError(
                    f'term {self.name!r}: teacher tap {tap!r} does not fire in a plain forward, so its channels are '
                    f"unknown; type them, as in loss=dict(type='{kind.__name__}', channels=[…])"
                )
        widths = [_width(f'term {self.name!r}: loss', teacher_taps, tap) for tap in self.teacher_names]
        return {**config, 'channels': widths}

    def bind(self, teacher: nn.Module) -> None:
        """Let connectors and the loss take what they need from the teacher's layers: once built, and once it is loaded.

        A loss that has ``bind`` is given the teacher's tapped modules, in the order of the taps, and the term's name.
        """
        for connector, tap, path in zip(self.teacher_connectors, self.teacher_names, self._teacher_norms):
            if hasattr(connector, 'bind'):
                connector.bind(teacher.get_submodule(path) if path else None, f'term {self.name!r}, tap {tap!r}')
        if hasattr(_innermost(self.loss), 'bind'):
            _innermost(self.loss).bind(
                [teacher.get_submodule(path) for path in self._teacher_paths], f'term {self.name!r}'
            )

    def waiting(self) -> list[tuple[str, nn.Module]]:
        """Teacher taps and their connectors that need training images before the first iteration."""
        pairs = zip(self.teacher_names, self.teacher_connectors)
        return [(tap, connector) for tap, connector in pairs if getattr(connector, 'waits_for_data', False)]

    def _names(self, config: Mapping, side: str, taps: FeatureTaps) -> tuple[list[str], bool]:
        names = config.get(side, config.get('on'))
        if names is None:
            raise KeyError(f"term {self.name!r}: no taps for the {side}, expected on='logits' or on=['stage1', …]")
        if not names or not isinstance(names, (str, list, tuple)):
            raise ValueError(
                f"term {self.name!r}: the taps of the {side} are {names!r}, expected on='logits' or on=['stage1', …]"
            )
        single = isinstance(names, str)
        names = [names] if single else list(names)
        for tap in names:
            if not isinstance(tap, str) or tap not in taps.addresses:
                raise KeyError(
                    f'term {self.name!r}: unknown {side} tap {tap!r}, the taps are '
                    + (', '.join(map(repr, taps.addresses)) or 'none')
                )
        return names, single

    def _shared(self, key: str, name: str, others: Mapping[str, 'Term']) -> str:
        example = 'ConvBN' if key == 'connector' else 'MarginReLU'
        if name not in others:
            known = ', '.join(map(repr, others)) or 'none'
            raise KeyError(
                f'term {self.name!r}: {key}={name!r} names no term before this one (they are: {known}); give a '
                f"dict(type='lckd_mm.{example}') for connectors of its own"
            )
        lender = others[name]
        if key == 'connector':
            own, further = lender.connectors, lender.shares
            theirs = dict(zip(lender.student_names, lender.teacher_names))
            mine = zip(self.student_names, self.teacher_names)
        else:
            own, further = lender.teacher_connectors, lender.teacher_shares
            theirs = dict(zip(lender.teacher_names, lender.student_names))
            mine = zip(self.teacher_names, self.student_names)
        if not own and further is None:
            raise ValueError(f'term {self.name!r}: {key}={name!r} names a term that has no {key}s itself')
        for tap, opposite in mine:
            if theirs.get(tap) != opposite:
                sides = ('student', 'teacher') if key == 'connector' else ('teacher', 'student')
                raise ValueError(
                    f'term {self.name!r}: it shares the {key}s of {name!r}, which has none from {sides[0]} tap '
                    f'{tap!r} to {sides[1]} tap {opposite!r}'
                )
        return further or name

    def _refuse_untrained(self) -> None:
        """A connector of the teacher that is trained along learns by a loss that reads it, and by no other."""
        for connector in self.teacher_connectors:
            if getattr(connector, 'online', False) and 'teacher_connectors' not in self._wanted:
                raise ValueError(
                    f'term {self.name!r}: a {type(connector).__name__} with online=True is trained by a term of its '
                    "own, with loss=dict(type='lckd_mm.ReconstructionLoss'); put it there, and name that term here as "
                    'teacher_connector'
                )

    def _extras(self) -> list[str]:
        loss = _innermost(self.loss)
        parameters = list(inspect.signature(loss.forward).parameters)
        extras = [p for p in parameters[2:] if p in _EXTRAS]
        if len(parameters) < 2:
            raise ValueError(f'term {self.name!r}: {type(loss).__name__} does not take (student, teacher)')
        return extras

    def _connectors(
        self, config: Mapping, key: str, pairs: Sequence, own: FeatureTaps, other: FeatureTaps
    ) -> nn.ModuleList:
        template = config.get(key)
        connectors = nn.ModuleList()
        if template is None:
            return connectors
        kind = registered_class(template, f'term {self.name!r}: {key}')
        parameters = inspect.signature(kind.__init__).parameters
        for i, (mine, theirs) in enumerate(pairs):
            cfg = dict(template)
            for field, taps, tap in (('in_channels', own, mine), ('out_channels', other, theirs)):
                if field not in parameters:
                    continue
                if isinstance(cfg.get(field), (list, tuple)):
                    if len(cfg[field]) != len(pairs):
                        raise ValueError(
                            f'term {self.name!r}: {key} has {len(cfg[field])} {field}, but there are {len(pairs)} taps'
                        )
                    cfg[field] = cfg[field][i]
                elif field not in cfg:
                    if tap not in taps.traces:
                        raise ValueError(
                            f'term {self.name!r}: {taps.role} tap {tap!r} does not fire in a plain forward, so its '
                            f'channels are unknown; type them, as in {key}=dict(type=…, {field}=[…])'
                        )
                    cfg[field] = _width(f'term {self.name!r}: {key}', taps, tap)
            connectors.append(build_registered(cfg, f'term {self.name!r}: {key}'))
        return connectors


def _width(who: str, taps: FeatureTaps, tap: str) -> int:
    """The channels of a traced tap."""
    shape = taps.traces[tap].shapes[0]
    if len(shape) < 2:
        raise ValueError(f'{who}: {taps.role} tap {tap!r} gives {tuple(shape)}, which has no channels; tap a feature')
    return shape[1]


def lenders_first(terms: Mapping[str, Any]) -> dict[str, Any]:
    """The terms' configs in their order, but each after those whose connectors it shares: a config that mmengine has
    written, as into each run's folder, is sorted by name.
    """
    ordered: dict[str, Any] = {}

    def add(name: str, waiting: tuple[str, ...]) -> None:
        config = terms[name]
        for key in ('connector', 'teacher_connector'):
            lender = config.get(key) if isinstance(config, Mapping) else None
            if isinstance(lender, str) and lender in terms and lender not in (*waiting, name):
                add(lender, (*waiting, name))
        ordered.setdefault(name, config)

    for name in terms:
        add(name, ())
    return ordered


def _innermost(loss: nn.Module) -> nn.Module:
    while hasattr(loss, 'wrapped'):
        loss = loss.wrapped
    return loss


def _connect(connectors: nn.ModuleList, features: list[Feature], likes: list[Feature]) -> list[Feature]:
    if not connectors:
        return features
    return [
        connector(x, like)
        if isinstance(x, Tensor)
        else [connector(level, other) for level, other in zip(x, like, strict=True)]
        for connector, x, like in zip(connectors, features, likes, strict=True)
    ]


def _detached(feature: Feature) -> Feature:
    return feature.detach() if isinstance(feature, Tensor) else [level.detach() for level in feature]


def _widen(feature: Feature) -> Feature:
    if isinstance(feature, Tensor):
        return feature.to(torch.promote_types(feature.dtype, torch.float32))
    return [_widen(level) for level in feature]


def _tensors(feature: Feature) -> list[Tensor]:
    return [feature] if isinstance(feature, Tensor) else list(feature)
