"""Queries of detectors with transformers: the teacher's decoder and head judge both nets' memory by its own queries."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: What a module was called with, in the last forward pass: its arguments, the autocast state, what it gave.
Calls = Mapping[str, tuple[tuple, dict, torch.autocast, Any]]
_ENCODER, _DECODER, _HEAD = 'encoder', 'decoder', 'bbox_head'
_WAY = "name a teacher such as DINO or Deformable DETR, or compare the neck, as in taps='neck'"


class QueryJudge:
    """The decoder and the head of a query detector of mmdet, frozen.

    Each layer of the decoder runs again with what the teacher's own queries, references and masks are before it, on
    another memory in the place of the teacher's; the head scores what the layers give, by the same references. So row
    i is the same query in both, and no matching is needed.

    Args:
        term: the name of its term. model: the teacher.
    Raises:
        ValueError: the model has no encoder, no decoder of layers, or no head of this kind.
    """

    def __init__(self, term: str, model: nn.Module):
        self._who, self._checked = f'term {term!r}: queries=True', False
        modules = dict(model.named_children())
        layers = getattr(modules.get(_DECODER), 'layers', None)
        if layers is None or not {_ENCODER, _HEAD} <= modules.keys():
            raise ValueError(
                f'{self._who} needs a query detector of mmdet as teacher, with encoder, decoder and bbox_head, and got '
                f'{type(model).__name__}; {_WAY}'
            )
        self._layers = [f'{_DECODER}.layers.{i}' for i in range(len(layers))]

    @property
    def paths(self) -> list[str]:
        """The modules whose calls have to be noted."""
        return [_ENCODER, *self._layers, _HEAD]

    def own(self, calls: Calls) -> tuple[Tensor, ...]:
        """What the teacher's own pass gave: class scores and boxes of each layer."""
        return calls[_HEAD][3][:2]

    def judge(self, model: nn.Module, calls: Calls, memory: Tensor) -> tuple[Tensor, ...]:
        """The same on another memory (B, N, C), with gradient to it.

        Raises:
            ValueError: a layer does not read what the encoder gives, or the head reads something else than the layers
            give.
        """
        decoder, theirs = getattr(model, _DECODER), calls[_ENCODER][3]
        norm = getattr(decoder, 'post_norm', None) or getattr(decoder, 'norm', None) or nn.Identity()
        if not self._checked:
            self._check(model, calls, norm)
        states = []
        for path in self._layers:
            args, kwargs, autocast, _ = calls[path]
            args = [memory if x is theirs else x for x in args]
            kwargs = {key: memory if x is theirs else x for key, x in kwargs.items()}
            with autocast:
                states.append(norm(model.get_submodule(path)(*args, **kwargs)))
        args, kwargs, autocast, _ = calls[_HEAD]
        args, kwargs = self._with_states(args, kwargs, torch.stack(states))
        with autocast:
            return getattr(model, _HEAD).forward(*args, **kwargs)[:2]

    @staticmethod
    def _with_states(args: tuple, kwargs: dict, states: Tensor) -> tuple[tuple, dict]:
        if 'hidden_states' in kwargs:
            return args, {**kwargs, 'hidden_states': states}
        return (states, *args[1:]), kwargs

    def _check(self, model: nn.Module, calls: Calls, norm: nn.Module) -> None:
        """Once, on the first batch: the layers read the memory, and the head reads their normalised outputs."""
        memory, (args, kwargs, autocast, _) = calls[_ENCODER][3], calls[_HEAD]
        states = kwargs['hidden_states'] if 'hidden_states' in kwargs else args[0]
        reads = all(any(x is memory for x in (*calls[path][0], *calls[path][1].values())) for path in self._layers)
        with autocast, torch.no_grad():
            made = [norm(calls[path][3]) for path in self._layers]
        same = len(states) == len(made) and all(torch.allclose(x, y, 1e-3, 1e-3) for x, y in zip(states, made))
        if not (reads and same):
            raise ValueError(
                f"{self._who}: the decoder of {type(model).__name__} runs otherwise than mmdet's DETR, Deformable DETR "
                f'and DINO; {_WAY}'
            )
        self._checked = True
