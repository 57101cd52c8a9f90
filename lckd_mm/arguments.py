"""Checks of constructor arguments from configs; a message names the class, the argument and the value given."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

# The largest float32, which training computes in.
_LARGEST = 3.4e38
#: More channels than any layer has; a larger number is a typo and would run out of memory.
MOST_CHANNELS = 2**20


def number(
    who: str,
    name: str,
    value: Any,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> float:
    """``value``, if it is a number within the bounds, finite in float32 and not a boolean.

    Raises:
        ValueError: otherwise, with ``who``, ``name`` and the value, as all functions here do.
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
    """A positive number whose square, and its inverse's, fit well into float32."""
    number(who, name, value, above=0)
    if not 1e-6 <= value <= 1e6:
        raise ValueError(f'{who}: {name} must lie between 1e-06 and 1e+06, got {value!r}')
    return value


def whole(who: str, name: str, value: Any, at_least: int | None = 1, at_most: int | None = None) -> int:
    """An integer within the bounds."""
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
    """A sequence other than a string, as a list."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise ValueError(f'{who}: {name} must be a list of {kind}, got {value!r}')
    return list(value)


def layer_weights(who: str, value: Any) -> list[float] | None:
    """None, or a list of non-negative numbers."""
    if value is None:
        return None
    return [number(who, 'layer_weights', v, at_least=0) for v in listed(who, 'layer_weights', value, 'numbers')]


def switch(who: str, name: str, value: Any) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise ValueError(f'{who}: {name} must be True or False, got {value!r}')
    return value


def text(who: str, name: str, value: Any) -> str:
    """A non-empty string."""
    if not isinstance(value, str) or not value:
        raise ValueError(f'{who}: {name} must be a text, got {value!r}')
    return value


def choice(who: str, name: str, value: Any, allowed: Iterable[str]) -> Any:
    """One of the allowed names."""
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f'{who}: unknown {name} {value!r}, expected one of {", ".join(allowed)}')
    return value
