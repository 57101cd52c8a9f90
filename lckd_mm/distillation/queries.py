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

    def own(self, model: nn.Module, calls: Calls) -> tuple[Tensor, ...]:
        """What the teacher makes of its own memory: class scores and boxes of each layer, in float32 or wider."""
        given = calls[_HEAD][3][:2]
        if all(x.dtype == _wide(x).dtype for x in given):
            return given
        with torch.no_grad():
            return self._scored(model, calls, self._states(calls))

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
        return self._scored(model, calls, torch.stack(states))

    @staticmethod
    def _states(calls: Calls) -> Tensor:
        args, kwargs, *_ = calls[_HEAD]
        return kwargs['hidden_states'] if 'hidden_states' in kwargs else args[0]

    @staticmethod
    def _scored(model: nn.Module, calls: Calls, states: Tensor) -> tuple[Tensor, ...]:
        """Class scores and boxes by the noted references, in float32: those of bfloat16 are 1/250 apart."""
        args, kwargs, *_ = calls[_HEAD]
        if 'hidden_states' in kwargs:
            kwargs = {**kwargs, 'hidden_states': states}
        else:
            args = (states, *args[1:])
        with torch.autocast(states.device.type, enabled=False):
            return getattr(model, _HEAD).forward(*_wide(args), **_wide(kwargs))[:2]

    def _check(self, model: nn.Module, calls: Calls, norm: nn.Module) -> None:
        """Once, on the first batch: the layers read the memory, and the head reads their normalised outputs."""
        memory, states, autocast = calls[_ENCODER][3], self._states(calls), calls[_HEAD][2]
        reads = all(any(x is memory for x in (*calls[path][0], *calls[path][1].values())) for path in self._layers)
        with autocast, torch.no_grad():
            made = [norm(calls[path][3]) for path in self._layers]
        same = len(states) == len(made) and all(_close(x, y) for x, y in zip(states, made))
        if not (reads and same):
            raise ValueError(
                f"{self._who}: the decoder of {type(model).__name__} runs otherwise than mmdet's DETR, Deformable DETR "
                f'and DINO; {_WAY}'
            )
        self._checked = True


def _close(x: Tensor, y: Tensor) -> bool:
    # What is nan is found, and named, where the loss is.
    return torch.allclose(x, y.to(x.dtype), 1e-2, 1e-2, equal_nan=True)


def _wide(value: Any) -> Any:
    """Tensors in float32 or wider, also those in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _wide(of) for key, of in value.items()}
    return type(value)(map(_wide, value)) if type(value) in (list, tuple) else value
