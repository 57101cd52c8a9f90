"""Checks of constructor arguments from configs; a message names the class, the argument and the value given."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any


def number(
    who: str,
    name: str,
    value: Any,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> float:
    """``value``, if it is a finite number within the bounds.

    Raises:
        ValueError: otherwise, with ``who``, ``name`` and the value, as all functions here do.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f'{who}: {name} must be a finite number, got {value!r}')
    _check_bounds(who, name, value, above, at_least, at_most)
    return value


def integer(who: str, name: str, value: Any, at_least: int | None = 1, at_most: int | None = None) -> int:
    """An integer within the bounds."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f'{who}: {name} must be an integer, got {value!r}')
    _check_bounds(who, name, value, None, at_least, at_most)
    return value


def _check_bounds(
    who: str, name: str, value: Any, above: float | None, at_least: float | None, at_most: float | None
) -> None:
    if above is not None and not value > above:
        raise ValueError(f'{who}: {name} must be above {above:g}, got {value!r}')
    if at_least is not None and not value >= at_least:
        raise ValueError(f'{who}: {name} must be at least {at_least:g}, got {value!r}')
    if at_most is not None and not value <= at_most:
        raise ValueError(f'{who}: {name} must be at most {at_most:g}, got {value!r}')


def sequence(who: str, name: str, value: Any, kind: str) -> list:
    """A sequence other than a string, as a list."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise ValueError(f'{who}: {name} must be a list of {kind}, got {value!r}')
    return list(value)


def integers(who: str, name: str, value: Any, at_least: int | None = 1) -> list[int]:
    """A list of integers, each within the bound."""
    return [integer(who, name, each, at_least) for each in sequence(who, name, value, 'integers')]


def layer_weights(who: str, value: Any) -> list[float] | None:
    """None, or a list of non-negative numbers."""
    if value is None:
        return None
    return [number(who, 'layer_weights', v, at_least=0) for v in sequence(who, 'layer_weights', value, 'numbers')]


def boolean(who: str, name: str, value: Any) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise ValueError(f'{who}: {name} must be True or False, got {value!r}')
    return value


def string(who: str, name: str, value: Any) -> str:
    """A non-empty string."""
    if not isinstance(value, str) or not value:
        raise ValueError(f'{who}: {name} must be a non-empty string, got {value!r}')
    return value


def choice(who: str, name: str, value: Any, allowed: Iterable[str]) -> Any:
    """One of the allowed names."""
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f'{who}: unknown {name} {value!r}, expected one of {", ".join(allowed)}')
    return value
