"""Judges of the hosts' nets: query detectors give boxes, Mask2Former and MaskFormer masks."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..contexts import wrapped_forward
from ..registry import registered_class
from .judge import WAY, Call, Calls, Judge, close, wide

_ENCODER, _DECODER, _HEAD = 'encoder', 'decoder', 'bbox_head'


class QueryJudge(Judge):
    """Of query detectors of mmdet: DETR, Deformable DETR, DINO and their like.

    The layers get the teacher's own references and masks, too, and the head scores by these references. Given are the
    class scores (L, B, Q, C) and boxes (L, B, Q, 4) of the L layers.
    """

    loss, gives, shapes, head = 'QueryLoss', 'boxes', ((1, 1, 1, 2), (1, 1, 1, 4)), _HEAD
    known = "mmdet's DETR, Deformable DETR and DINO"

    def __init__(self, term: str, model: nn.Module):
        super().__init__(term, model)
        self._layers = [f'{_DECODER}.layers.{i}' for i in range(len(model.decoder.layers))]

    @staticmethod
    def memory_of(model: nn.Module) -> dict[str, str]:
        modules = dict(model.named_children())
        layers = getattr(modules.get(_DECODER), 'layers', None)
        return {} if layers is None or not {_ENCODER, _HEAD} <= modules.keys() else dict(memory=_ENCODER)

    @property
    def paths(self) -> list[str]:
        return [_ENCODER, *self._layers, _HEAD]

    @staticmethod
    def _listed(given: Any) -> list[Tensor]:
        return list(given[:2])

    def _judged(self, model: nn.Module, calls: Calls, memory: Sequence[Tensor]) -> Any:
        (other,), theirs, norm = memory, calls[_ENCODER][3], _norm(model)
        states = []
        for path in self._layers:
            args, kwargs, autocast, _ = calls[path]
            args = [other if x is theirs else x for x in args]
            kwargs = {key: other if x is theirs else x for key, x in kwargs.items()}
            with autocast:
                states.append(norm(model.get_submodule(path)(*args, **kwargs)))
        return self._scored(model, calls, torch.stack(states))

    def _own_again(self, model: nn.Module, calls: Calls) -> Any:
        return self._scored(model, calls, self._states(calls))

    @staticmethod
    def _states(calls: Calls) -> Tensor:
        args, kwargs, *_ = calls[_HEAD]
        return kwargs['hidden_states'] if 'hidden_states' in kwargs else args[0]

    @staticmethod
    def _scored(model: nn.Module, calls: Calls, states: Tensor) -> Any:
        """Class scores and boxes by the noted references, in float32: those of bfloat16 are 1/250 apart."""
        args, kwargs, *_ = calls[_HEAD]
        if 'hidden_states' in kwargs:
            kwargs = {**kwargs, 'hidden_states': states}
        else:
            args = (states, *args[1:])
        with torch.autocast(states.device.type, enabled=False):
            return getattr(model, _HEAD).forward(*wide(args), **wide(kwargs))

    def _runs_so(self, model: nn.Module, calls: Calls) -> bool:
        """Whether the layers read the memory, and the head reads their normalised outputs."""
        memory, states, autocast = calls[_ENCODER][3], self._states(calls), calls[_HEAD][2]
        norm = _norm(model)
        reads = all(any(x is memory for x in (*calls[path][0], *calls[path][1].values())) for path in self._layers)
        with autocast, torch.no_grad():
            made = [norm(calls[path][3]) for path in self._layers]
        return reads and len(states) == len(made) and all(close(x, y) for x, y in zip(states, made))


class MaskJudge(Judge):
    """Of Mask2Former and MaskFormer, of mmdet and of mmseg.

    The head runs again: its pixel decoder gives the other memory, the mask features and the maps that the layers read,
    and each layer gets the teacher's own queries and attention mask. Given are the class scores (L, B, Q, C) of the L
    predictions, the last class being "no object", and then L tensors of masks (B, Q, H, W). Mask2Former also
    predicts before the first layer; of that prediction only the masks depend on the memory.
    """

    loss, gives, shapes = 'MaskQueryLoss', 'masks', ((1, 1, 1, 2), (1, 1, 4, 4))
    known = "Mask2Former's and MaskFormer's"

    def __init__(self, term: str, model: nn.Module):
        super().__init__(term, model)
        self.head = _mask_head(model)
        self._pixels, decoder = f'{self.head}.pixel_decoder', f'{self.head}.transformer_decoder'
        self._layers = [f'{decoder}.layers.{i}' for i in range(len(model.get_submodule(decoder).layers))]

    @staticmethod
    def memory_of(model: nn.Module) -> dict[str, str]:
        head = _mask_head(model)
        if head is None:
            return {}
        levels = getattr(model.get_submodule(head), 'num_transformer_feat_level', None)  # MaskFormer has one map
        items = dict(memory='[1]') if levels is None else {f'memory{i}': f'[1][{i}]' for i in range(levels)}
        return {name: f'{head}.pixel_decoder{item}' for name, item in dict(mask='[0]', **items).items()}

    @property
    def paths(self) -> list[str]:
        return [self._pixels, *self._layers, self.head]

    @staticmethod
    def _listed(given: Any) -> list[Tensor]:
        scores, masks = given
        return [torch.stack(list(scores)), *masks]

    def _judged(self, model: nn.Module, calls: Calls, memory: Sequence[Tensor]) -> Any:
        mask, *maps = memory
        several = isinstance(calls[self._pixels][3][1], (list, tuple))
        return self._again(model, calls, (mask, maps if several else maps[0]))

    def _own_again(self, model: nn.Module, calls: Calls) -> Any:
        return self._again(model, calls, wide(calls[self._pixels][3]))

    def _again(self, model: nn.Module, calls: Calls, memory: tuple, autocast: torch.autocast | None = None) -> Any:
        """What the head gives on what its pixel decoder might give, by default in float32 but for the layers."""
        args, kwargs, *_ = calls[self.head]
        with contextlib.ExitStack() as stack:
            stack.enter_context(autocast or torch.autocast(memory[0].device.type, enabled=False))
            stack.enter_context(wrapped_forward(model.get_submodule(self._pixels), lambda *_, **__: memory))
            for path in self._layers:
                stack.enter_context(wrapped_forward(model.get_submodule(path), partial(_by_own_queries, calls[path])))
            return model.get_submodule(self.head).forward(*args, **kwargs)

    def _runs_so(self, model: nn.Module, calls: Calls) -> bool:
        """Whether the layers are given what to read by name, and the head gives the same again on its own memory."""
        if not all({'key', 'value'} <= calls[path][1].keys() for path in self._layers):
            return False
        with torch.no_grad():
            again = self._listed(self._again(model, calls, calls[self._pixels][3], calls[self.head][2]))
        given = self._listed(calls[self.head][3])
        return len(again) == len(given) and all(map(close, again, given))


def judge_of(term: str, model: nn.Module) -> Judge:
    """What judges by the queries of a teacher; ValueError if it has none of the known kinds."""
    for kind in (QueryJudge, MaskJudge):
        if kind.memory_of(model):
            return kind(term, model)
    raise ValueError(
        f'term {term!r}: queries=True needs as teacher a query detector of mmdet, with encoder, decoder and bbox_head, '
        'or a Mask2Former, with pixel_decoder and transformer_decoder in its head, and got '
        f'{type(model).__name__}; {WAY}'
    )


def memory_of(model: nn.Module) -> dict[str, str]:
    """Tap name to address of what the decoder of a net reads; empty if it has no decoder of a known kind."""
    return QueryJudge.memory_of(model) or MaskJudge.memory_of(model)


def check_matched(terms: Mapping[str, Any], student: nn.Module, teachers: Mapping[str | None, nn.Module]) -> None:
    """Raise ValueError if a term matches predictions of queries, and one of its nets has none.

    Before the nets are traced, since the taps of another net are refused with advice on taps.
    """
    for name, config in terms.items():
        loss = config.get('loss') if isinstance(config, Mapping) else None
        if not isinstance(loss, Mapping) or 'type' not in loss:
            continue
        kind = registered_class(loss, f'term {name!r}: loss')
        if not getattr(kind, 'matches_queries', False):
            continue
        for role, model in (('student', student), ('teacher', teachers.get(config.get('of')))):
            if model is not None and not QueryJudge.memory_of(model):
                raise ValueError(
                    f"term {name!r}: {kind.__name__} compares the predictions of mmdet's detectors with queries, such "
                    f"as DINO, and the {role} is a {type(model).__name__}; compare the backbones, as in taps='backbone'"
                )


def _mask_head(model: nn.Module) -> str | None:
    """The path of a head with a pixel decoder and layers that read what it gives; None without one."""
    for name, part in model.named_children():
        if hasattr(part, 'pixel_decoder') and hasattr(getattr(part, 'transformer_decoder', None), 'layers'):
            return name
    return None


def _by_own_queries(noted: Call, forward: Callable[..., Tensor], *_: Any, **given: Any) -> Tensor:
    """Run a layer as it was called, on another memory."""
    args, kwargs, autocast, _ = noted
    with autocast:
        return forward(*args, **{**kwargs, 'key': given['key'], 'value': given['value']})


def _norm(model: nn.Module) -> nn.Module:
    decoder = getattr(model, _DECODER)
    return getattr(decoder, 'post_norm', None) or getattr(decoder, 'norm', None) or nn.Identity()
