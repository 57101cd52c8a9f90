"""Side: one net's half of a term; takes its features from the taps through the connectors to the loss."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import build_registered, registered_class
from ..taps import FeatureTaps

#: One tensor, or one per level for a tap that gives several.
Feature = Tensor | list[Tensor]
#: Term name to the student's and the teacher's connected features, each by tap name.
Connected = dict[str, tuple[dict[str, Feature], dict[str, Feature]]]


class Side:
    """The taps of one net that a term reads, and their connectors: its own, or borrowed from an earlier term.

    Args:
        term: the name of the term.
        key: 'connector' for the student's side, 'teacher_connector' for the teacher's.
        names: a tap's name, or a list of them.
        taps: the traced taps of this net.
    Raises:
        KeyError: no names, or an unknown tap. ValueError: ``names`` is neither a string nor a non-empty list.
    """

    def __init__(self, term: str, key: str, names: Any, taps: FeatureTaps):
        self.key, self.role = key, 'student' if key == 'connector' else 'teacher'
        self.term, self.taps = term, taps
        example = "on='logits' or on=['stage1', …]"
        if names is None:
            raise KeyError(f'term {term!r}: no taps for the {self.role}, expected {example}')
        if not names or not isinstance(names, (str, list, tuple)):
            raise ValueError(f'term {term!r}: the taps of the {self.role} are {names!r}, expected {example}')
        #: Whether one tap's name was given rather than a list.
        self.single = isinstance(names, str)
        self.names = [names] if self.single else list(names)
        for tap in self.names:
            if not isinstance(tap, str) or tap not in taps.addresses:
                known = ', '.join(map(repr, taps.addresses)) or 'none'
                raise KeyError(f'term {term!r}: unknown {self.role} tap {tap!r}, the taps are {known}')
        self.connectors = nn.ModuleList()
        #: The term whose connectors this side borrows.
        self.lender: str | None = None
        #: Maps a tap's name and feature to the feature used from there on; a hook may set it.
        self.follow: Callable[[str, Feature], Feature] | None = None

    def connect(self, config: Any, other: 'Side', before: Mapping[str, tuple['Side', 'Side']]) -> None:
        """Build the connectors, one per tap, or find the term that lends them.

        Args:
            config: a connector's config, the name of an earlier term, or None.
            other: the other net's side, whose width the connectors map to.
            before: term name to its sides (this net's, the other's), for the earlier terms.
        """
        if isinstance(config, str):
            self.lender = self._lender(config, other, before)
        elif config is not None:
            fields = inspect.signature(registered_class(config, self._who)).parameters
            for i, (mine, theirs) in enumerate(zip(self.names, other.names)):
                own = dict(config)
                for field, side, tap in (('in_channels', self, mine), ('out_channels', other, theirs)):
                    if field in fields:
                        own[field] = self._channels(own.get(field), field, i, side, tap)
                self.connectors.append(build_registered(own, self._who))

    def raw(self, features: Mapping[str, Feature]) -> list[Feature]:
        """The taps' features before the connectors, in float32 or wider."""
        return [self._followed(name, _widened(features[name])) for name in self.names]

    def connected(self, raw: list[Feature], likes: list[Feature], done: Connected) -> list[Feature]:
        """The features after the connectors; ``likes``: the other net's, ``done``: connected ones of earlier terms."""
        if self.lender is None:
            return [_connect(*of) for of in zip(self.connectors, raw, likes)] if self.connectors else raw
        if self.role == 'student':
            return [self._followed(name, done[self.lender][0][name]) for name in self.names]
        return [detached(done[self.lender][1][name]) for name in self.names]

    def shaped(self, features: list[Feature]) -> Feature | list[Feature]:
        """The features as the loss takes them: a single one if the term names a single tap."""
        return features[0] if self.single else features

    def widths(self, who: str, advice: str) -> list[int]:
        """The channels of the taps; ValueError, with ``advice``, if a tap was not traced."""
        return [self._width(who, tap, advice) for tap in self.names]

    @property
    def _who(self) -> str:
        return f'term {self.term!r}: {self.key}'

    def _followed(self, name: str, feature: Feature) -> Feature:
        return feature if self.follow is None else self.follow(name, feature)

    def _width(self, who: str, tap: str, advice: str) -> int:
        if tap not in self.taps.traces:
            raise ValueError(
                f'term {self.term!r}: {self.taps.role} tap {tap!r} does not fire in a plain forward, so its channels '
                f'are unknown; type them, as in {advice}'
            )
        shape = self.taps.traces[tap].shapes[0]
        if len(shape) < 2:
            raise ValueError(
                f'{who}: {self.taps.role} tap {tap!r} gives {tuple(shape)}, which has no channels; tap a feature'
            )
        return shape[1]

    def _channels(self, given: Any, field: str, i: int, side: 'Side', tap: str) -> Any:
        if isinstance(given, (list, tuple)):
            if len(given) != len(self.names):
                raise ValueError(f'{self._who} has {len(given)} {field}, but there are {len(self.names)} taps')
            return given[i]
        return side._width(self._who, tap, f'{self.key}=dict(type=…, {field}=[…])') if given is None else given

    def _lender(self, name: str, other: 'Side', before: Mapping[str, tuple['Side', 'Side']]) -> str:
        if name not in before:
            example = 'ConvBN' if self.role == 'student' else 'MarginReLU'
            raise KeyError(
                f'{self._who}={name!r} names no term before this one (they are: '
                f"{', '.join(map(repr, before)) or 'none'}); give a dict(type='lckd_mm.{example}') for connectors of "
                'its own'
            )
        lender, opposite = before[name]
        if not lender.connectors and lender.lender is None:
            raise ValueError(f'{self._who}={name!r} names a term that has no {self.key}s itself')
        theirs = dict(zip(lender.names, opposite.names))
        for tap, facing in zip(self.names, other.names):
            if theirs.get(tap) != facing:
                raise ValueError(
                    f'term {self.term!r}: it shares the {self.key}s of {name!r}, which has none from {self.role} tap '
                    f'{tap!r} to {other.role} tap {facing!r}'
                )
        return lender.lender or name


def _connect(connector: nn.Module, feature: Feature, like: Feature) -> Feature:
    if isinstance(feature, Tensor):
        return connector(feature, like)
    return [connector(level, other) for level, other in zip(feature, like, strict=True)]


def detached(feature: Feature) -> Feature:
    """The feature, detached."""
    return feature.detach() if isinstance(feature, Tensor) else [level.detach() for level in feature]


def _widened(feature: Feature) -> Feature:
    if isinstance(feature, Tensor):
        return feature.to(torch.promote_types(feature.dtype, torch.float32))
    return [_widened(level) for level in feature]
