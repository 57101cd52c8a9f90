"""Items of nested tuples: what a module gives, or is called with."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

#: Which item of a tuple, of the tuple in it, and so on.
Items = tuple[int, ...]


def items_of(value: Any, items: Items = ()) -> Iterator[tuple[Items, Any]]:
    """What nested tuples and lists hold, each with its items."""
    if not isinstance(value, (tuple, list)):
        yield items, value
        return
    for i, part in enumerate(value):
        yield from items_of(part, (*items, i))


def places_of(wanted: list[Tensor], value: Any) -> list[Items]:
    """Where each of the tensors is in nested tuples and lists; empty if one of them is not there."""
    known = [(items, x) for items, x in items_of(value) if isinstance(x, Tensor)]
    found = [next((items for items, x in known if _same(x, y)), None) for y in wanted]
    return [] if None in found else found


def put(given: Any, items: Items, value: Tensor) -> Any:
    """``value``; with items, the tuple ``given`` with it at this place."""
    if not items:
        return value
    parts = list(given)
    parts[items[0]] = put(parts[items[0]], items[1:], value)
    return type(given)(parts) if type(given) in (list, tuple) else type(given)(*parts)


def _same(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.data_ptr() == y.data_ptr()
