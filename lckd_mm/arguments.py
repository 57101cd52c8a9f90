"""Checks of what configs hand to constructors: one sentence with the class, the argument and what was given."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

# What training computes in.
_LARGEST = 3.4e38
#: More channels than any layer has: a slip of the keyboard, which would end in a system without memory.
MOST_CHANNELS = 2**20


def number(
    who: str,
    name: str,
    value: Any,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> float:
    """``value``, if it is a finite number (of float32) within the bounds; True and False are none.

    Raises:
        ValueError: else, with ``who``, ``name`` and the value; so all functions here.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not abs(value) <= _LARGEST:
        raise ValueError(f'{who}: {name} must be a finite number, got {value!r}')
    if above is not None and not value > above:
        raise ValueError(f'{who}: {name} must be above {above:g}, got {value!r}')
    if at_least is not None and not value >= at_least:
        raise ValueError(f'{who}: {name} must be {at_least:g} or above, got {value!r}')
    if at_most is not None and not value <= at_most:
        raise ValueError(f'{who}: {name} must be at most {at_most:g}, got {value!r}')
    return value


def scale(who: str, name: str, value: Any) -> float:
    """A number above 0 whose square, and that of its inverse, are numbers of float32 with room beside them."""
    number(who, name, value, above=0)
    if not 1e-6 <= value <= 1e6:
        raise ValueError(f'{who}: {name} must lie between 1e-06 and 1e+06, got {value!r}')
    return value


def whole(who: str, name: str, value: Any, at_least: int | None = 1, at_most: int | None = None) -> int:
    """A whole number within the bounds."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f'{who}: {name} must be a whole number, got {value!r}')
    if at_least is not None and value < at_least:
        raise ValueError(f'{who}: {name} must be at least {at_least}, got {value!r}')
    if at_most is not None and value > at_most:
        raise ValueError(f'{who}: {name} must be at most {at_most}, got {value!r}')
    return value


def channels(who: str, name: str, value: Any) -> int:
    """A number of channels."""
    return whole(who, name, value, at_most=MOST_CHANNELS)


def listed(who: str, name: str, value: Any, kind: str) -> list:
    """A list (or tuple, or other sequence that is no text) as a list."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise ValueError(f'{who}: {name} must be a list of {kind}, got {value!r}')
    return list(value)


def layer_weights(who: str, value: Any) -> list[float] | None:
    """None, or a list of numbers, 0 or above."""
    if value is None:
        return None
    return [number(who, 'layer_weights', v, at_least=0) for v in listed(who, 'layer_weights', value, 'numbers')]


def switch(who: str, name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f'{who}: {name} must be True or False, got {value!r}')
    return value


def text(who: str, name: str, value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f'{who}: {name} must be a text, got {value!r}')
    return value


def choice(who: str, name: str, value: Any, allowed: Iterable[str]) -> Any:
    """One of the names allowed."""
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f'{who}: unknown {name} {value!r}, expected one of {", ".join(allowed)}')
    return value
