"""Places of tensors in the arguments of a part of a net."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

Place = tuple[int, ...]


def places_of(wanted: list[Tensor], value: Any) -> list[Place]:
    """Where each of the tensors is in nested tuples and lists; empty if one of them is not there."""
    known = list(_tensors(value))
    found = [next((place for place, x in known if _same(x, y)), None) for y in wanted]
    return [] if None in found else found


def put_at(value: Any, puts: Mapping[Place, Tensor], place: Place = ()) -> Any:
    """Nested tuples and lists with other tensors at these places."""
    if place in puts:
        return puts[place]
    if type(value) not in (tuple, list):
        return value
    return type(value)([put_at(part, puts, (*place, i)) for i, part in enumerate(value)])


def _tensors(value: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    for i, part in enumerate(value) if type(value) in (tuple, list) else ():
        yield from _tensors(part, (*place, i))


def _same(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.data_ptr() == y.data_ptr()
