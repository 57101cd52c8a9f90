"""Side: one net's half of a term; takes its features from the taps through the connectors to the loss."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..connectors import Chain, Connector
from ..contexts import eval_mode
from ..errors import one_line
from ..functional.shapes import width
from ..registry import build_registered, registered_class
from ..taps import FeatureTaps

#: One tensor, or one per level for a tap that gives several.
Feature = Tensor | list[Tensor]
_TYPED = "dict(type='lckd_mm.ConvBN', in_channels=…, out_channels=…)"
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
        if not names or not isinstance(names, (str, list, tuple)):
            raise ValueError(
                f"term {term!r}: the taps of the {self.role} are {names!r}, expected on='logits' or on=['stage1', …]"
            )
        self.names = [names] if isinstance(names, str) else list(names)
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
            config: a connector's config, a list of these, the name of an earlier term, or None.
            other: the other net's side, whose width the connectors map to.
            before: term name to its sides (this net's, the other's), for the earlier terms.
        """
        if isinstance(config, str):
            self.lender = self._lender(config, other, before)
        elif config is not None:
            chained = isinstance(config, (list, tuple))
            if chained and not config:
                raise ValueError(f'{self._who} is an empty list; name connectors, or leave it out')
            for i in range(len(self.names)):
                made = self._made(list(config) if chained else [config], i, other)
                try:
                    self.connectors.append(Chain(made) if chained else made[0])
                except ValueError as error:
                    raise ValueError(f'{self._who}: {error}') from None

    def check_rows(self, advice: str) -> None:
        """Raise ValueError, with ``advice``, if a tap's rows are the net's own choice, which is not another net's."""
        for tap in self.names:
            trace = self.taps.traces.get(tap)
            if trace is not None and trace.rows is not None:
                raise ValueError(f'{self._tap(tap)} gives {trace.rows}{advice}')

    def check_known(self, who: str) -> None:
        """Raise ValueError, for ``who`` needs them, if it is not known which axis of a tap holds the channels."""
        for tap in self.names:
            trace = self.taps.traces.get(tap)
            if trace is not None and not trace.known:
                raise ValueError(
                    f'{self._tap(tap)} gives {trace.shapes[0]}, and it is not known which axis holds the channels, '
                    f'which {who} needs; tap the output of a convolution, a linear layer or a norm'
                )

    def raw(self, features: Mapping[str, Feature]) -> list[Feature]:
        """The taps' features before the connectors, in float32 or wider, without denoising queries."""
        return [self._followed(name, self._asked(name, _widened(features[name]))) for name in self.names]

    def connected(self, raw: list[Feature], likes: list[Feature], done: Connected) -> list[Feature]:
        """The features after the connectors; ``likes``: the other net's, ``done``: connected ones of earlier terms."""
        if self.lender is None:
            for name, feature, like in zip(self.names, raw, likes) if self.connectors else ():
                if len(levels(feature)) != len(levels(like)):
                    raise ValueError(
                        f'{self._who}: {self.role} tap {name!r} gives {len(levels(feature))} tensors, the other net '
                        f'{len(levels(like))}; name one with #k'
                    )
            return [each(*of) for of in zip(self.connectors, raw, likes)] if self.connectors else raw
        if self.role == 'student':
            return [self._followed(name, done[self.lender][0][name]) for name in self.names]
        return [detached(done[self.lender][1][name]) for name in self.names]

    def widths(self, advice: str) -> list[int]:
        """The channels of the taps' tensors; ValueError, with ``advice``, if a tap was not traced."""
        return [width for tap in self.names for width in self._widths(tap, advice)]

    def width(self) -> int:
        """The channels of the first tap's tensor; 0 if it was not traced or has none."""
        trace = self.taps.traces.get(self.names[0])
        return width(trace.shapes[0]) if trace is not None and len(trace.shapes[0]) > 1 else 0

    def layers(self, net: nn.Module) -> list[nn.Module | None]:
        """The modules of the net whose outputs are tapped; None for a tap of another tensor."""
        addresses = [self.taps.addresses[tap] for tap in self.names]
        return [net.get_submodule(a.path) if a.port == 'out' and not a.items else None for a in addresses]

    @property
    def _who(self) -> str:
        return f'term {self.term!r}: {self.key}'

    def _tap(self, tap: str) -> str:
        return f'term {self.term!r}: {self.taps.role} tap {tap!r} ({str(self.taps.addresses[tap])!r})'

    def _made(self, configs: list[Any], i: int, other: 'Side') -> list[Connector]:
        """The connectors of tap ``i``, in order; each gets the channels that those before it give."""
        made: list[Connector] = []
        for config in configs:
            kind = registered_class(config, self._who)
            if not (inspect.isclass(kind) and issubclass(kind, Connector)):
                raise TypeError(f'{self._who}: {kind.__name__} does not derive from lckd_mm.connectors.Connector')
            if kind.of_teacher and self.role == 'student':
                raise ValueError(
                    f"{self._who}: {kind.__name__} looks at the teacher's layers; write it as teacher_connector"
                )
            if kind.takes and not made:
                self.check_known(kind.__name__)
            fields, own = inspect.signature(kind).parameters, dict(config)
            for field, side in (('in_channels', self), ('out_channels', other)):
                if field in fields:
                    given = self._width_after(made, i, other) if made and side is self and field not in own else None
                    own[field] = self._channels(own.get(field, given), field, i, side, side.names[i])
            made.append(build_registered(own, self._who))
        return made

    def _width_after(self, made: list[Connector], i: int, other: 'Side') -> int:
        """The channels that these connectors give, from a run on zeros of the tap's shape."""
        x, like = (torch.zeros(side._shapes(side.names[i], _TYPED)[0]) for side in (self, other))
        for connector in made:
            try:
                with eval_mode(connector):
                    x = connector(x, like)
            except Exception as error:  # a connector may raise anything on a feature that does not fit
                raise ValueError(
                    f'{self._who}: {type(connector).__name__} does not take {tuple(x.shape)}: {one_line(error)}'
                ) from error
        return width(x.shape)

    def _followed(self, name: str, feature: Feature) -> Feature:
        return feature if self.follow is None else self.follow(name, feature)

    def _asked(self, tap: str, feature: Feature) -> Feature:
        trace = self.taps.traces.get(tap)
        return feature if trace is None or trace.queries is None else each(lambda x: x[:, :, -trace.queries :], feature)

    def _shapes(self, tap: str, advice: str) -> list[tuple[int, ...]]:
        trace = self.taps.traces.get(tap)
        if trace is None:
            raise ValueError(
                f'{self._tap(tap)} lies behind an operator that the CPU lacks, so its channels are unknown; type them, '
                f'as in {advice}'
            )
        return trace.shapes

    def _widths(self, tap: str, advice: str) -> list[int]:
        shapes = self._shapes(tap, advice)
        if any(len(shape) < 2 for shape in shapes):
            raise ValueError(f'{self._tap(tap)} gives {tuple(shapes[0])}, which has no channels; tap a feature')
        self.check_known('its width')
        return [width(shape) for shape in shapes]

    def _channels(self, given: Any, field: str, i: int, side: 'Side', tap: str) -> Any:
        if isinstance(given, (list, tuple)):
            if len(given) != len(self.names):
                raise ValueError(f'{self._who} has {len(given)} {field}, but there are {len(self.names)} taps')
            return given[i]
        return side._widths(tap, f'{self.key}=dict(type=…, {field}=[…])')[0] if given is None else given

    def _lender(self, name: str, other: 'Side', before: Mapping[str, tuple['Side', 'Side']]) -> str:
        if name not in before:
            known = ', '.join(map(repr, before)) or 'none'
            raise KeyError(f'{self._who}: no term {name!r} before this one to borrow from, the terms are {known}')
        lender, opposite = before[name]
        if not lender.connectors and lender.lender is None:
            raise ValueError(f'{self._who}: the term {name!r} has no {self.key} itself')
        theirs = dict(zip(lender.names, opposite.names))
        for pair in zip(self.names, other.names):
            if pair not in theirs.items():
                raise ValueError(
                    f'{self._who}: the term {name!r} has no {self.key} from {self.role} tap {pair[0]!r} to '
                    f'{other.role} tap {pair[1]!r}'
                )
        return lender.lender or name


def levels(feature: Feature) -> list[Tensor]:
    """The tensors of a feature."""
    return [feature] if isinstance(feature, Tensor) else feature


def flat(features: Iterable[Feature]) -> list[Tensor]:
    """The tensors of several features, in one list."""
    return [level for feature in features for level in levels(feature)]


def detached(feature: Feature) -> Feature:
    """The feature, detached."""
    return each(Tensor.detach, feature)


def _widened(feature: Feature) -> Feature:
    return each(lambda x: x.to(torch.promote_types(x.dtype, torch.float32)), feature)


def each(function: Callable[..., Tensor], *features: Feature) -> Feature:
    """The function of one tensor of each feature, level by level."""
    if isinstance(features[0], Tensor):
        return function(*features)
    return [function(*tensors) for tensors in zip(*features, strict=True)]
