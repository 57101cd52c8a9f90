"""Judge: a teacher's decoder and head, which judge both nets' memory by the teacher's own queries."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: What a module was called with, in the last forward pass: its arguments, the autocast state, what it gave.
Call = tuple[tuple, dict, torch.autocast, Any]
Calls = Mapping[str, Call]
#: What to do where a teacher has no such decoder.
WAY = "name a teacher such as DINO or Mask2Former, or compare the backbones, as in taps='backbone'"


class Judge(ABC):
    """The decoder and the head of a teacher with queries, frozen.

    Each layer of the decoder runs again with what the teacher's own queries are before it, on another memory in the
    place of the teacher's; the head scores what the layers give. So row i is the same query in both, and no matching is
    needed.

    Args:
        term: the name of its term. model: the teacher, which has a :meth:`memory_of`.
    """

    #: The class of the loss that compares what it gives, and what that is beside class scores.
    loss: str
    gives: str
    #: The shapes of what it gives, of one layer, image and query and two classes.
    shapes: tuple[tuple[int, ...], ...]
    #: The models of the hosts that run so.
    known: str
    #: The module that scores; no other call is noted after its.
    head: str

    def __init__(self, term: str, model: nn.Module):
        self._who, self._checked = f'term {term!r}: queries=True', False
        self.memory = self.memory_of(model)

    @staticmethod
    @abstractmethod
    def memory_of(model: nn.Module) -> dict[str, str]:
        """Tap name to address of what the decoder of a model reads; empty if the model is of another kind."""

    @property
    @abstractmethod
    def paths(self) -> list[str]:
        """The modules whose calls have to be noted."""

    def own(self, model: nn.Module, calls: Calls) -> list[Tensor]:
        """What the teacher makes of its own memory, in float32 or wider."""
        given = self._listed(calls[self.head][3])
        if all(x.dtype == wide(x).dtype for x in given):
            return given
        with torch.no_grad():
            return self._listed(self._own_again(model, calls))

    def judge(self, model: nn.Module, calls: Calls, memory: Sequence[Tensor]) -> list[Tensor]:
        """The same on another memory, one tensor for each tap of :attr:`memory`, with gradient to them.

        Raises:
            ValueError: the decoder runs otherwise than those of the hosts; seen on the first batch.
        """
        if not self._checked and not self._runs_so(model, calls):
            raise ValueError(
                f'{self._who}: the decoder of {type(model).__name__} runs otherwise than {self.known}; {WAY}'
            )
        self._checked = True
        return self._listed(self._judged(model, calls, memory))

    def check(self, taps: Mapping[str, str], loss: str, compares: str | None) -> None:
        """Raise ValueError unless a term has these taps of the teacher, and a loss that compares what it gives.

        Args:
            taps: name to address, in order. compares: the loss's ``of_queries``.
        """
        if compares != self.gives:
            raise ValueError(
                f'{self._who}: {loss} does not compare the class scores and {self.gives} that the decoder of this '
                f"teacher gives; write loss=dict(type='lckd_mm.{self.loss}')"
            )
        if list(taps.values()) != list(self.memory.values()):
            found = ', '.join(f'{name!r} is {address!r}' for name, address in taps.items())
            wanted = ', '.join(f'{name}={address!r}' for name, address in self.memory.items())
            on = list(self.memory) if len(self.memory) > 1 else next(iter(self.memory))
            raise ValueError(
                f"{self._who} reads the teacher's memory, and teacher tap {found}; write on={on!r} and "
                f'taps=dict({wanted})'
            )

    @staticmethod
    @abstractmethod
    def _listed(given: Any) -> list[Tensor]:
        """What the head gives, as the loss takes it."""

    @abstractmethod
    def _judged(self, model: nn.Module, calls: Calls, memory: Sequence[Tensor]) -> Any:
        """What the head gives on another memory, in float32 or wider."""

    @abstractmethod
    def _own_again(self, model: nn.Module, calls: Calls) -> Any:
        """What the head gives on the teacher's own memory, in float32 or wider."""

    @abstractmethod
    def _runs_so(self, model: nn.Module, calls: Calls) -> bool:
        """Whether the decoder runs as this class takes it to."""


def close(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal but for rounding in bfloat16; a nan is equal to a nan."""
    # What is nan is found, and named, where the loss is.
    return torch.allclose(x, y.to(x.dtype), 1e-2, 1e-2, equal_nan=True)


def wide(value: Any) -> Any:
    """Tensors in float32 or wider, also those in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: wide(of) for key, of in value.items()}
    return type(value)(map(wide, value)) if type(value) in (list, tuple) else value
