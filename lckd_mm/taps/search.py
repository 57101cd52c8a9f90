"""Finds the stages, the levels of a pyramid and the class scores of a net by running it once on a made-up image."""

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..contexts import eval_mode, preserved_rng, training_branches
from ..hosts import comparable_parts, image_channels, owner_head, row_choosers, run_once, scores_classes
from .address import Address
from .capture import LIST_ALL, Finished
from .modules import watch_input, watch_output


class NotFoundError(ValueError):
    """A net does not have what a preset stands for."""


@dataclass
class Seen:
    """One tensor of one call of a module: its address, and its version counter at that time."""

    address: Address
    tensor: Tensor
    version: int

    @property
    def intact(self) -> bool:
        return self.tensor._version == self.version


def items(path: str, output: Any) -> list[Seen]:
    """The tensors of an output, which is a tensor or a tuple or list of tensors and others."""
    if isinstance(output, Tensor):
        return [Seen(Address(path), output, output._version)]
    if not isinstance(output, (tuple, list)):
        return []
    return [Seen(Address(path, (i,)), x, x._version) for i, x in enumerate(output) if isinstance(x, Tensor)]


def log_stride(shape: tuple[int, ...], size: tuple[int, int]) -> int | None:
    """log2 of the stride of a map (B, C, H, W) or (B, H, W, C), or of tokens (B, N, C); None for anything else."""
    if len(shape) == 4:
        for height, width in (shape[2:], shape[1:3]):
            steep, wide = (math.log2(side / own) for side, own in zip(size, (height, width)))
            if abs(steep - wide) < 0.5:
                return round((steep + wide) / 2)
    return round(math.log2(math.prod(size) / shape[1]) / 2) if len(shape) == 3 else None


def log_strides(shapes: Iterable[tuple[int, ...]], size: tuple[int, int]) -> list[int | None]:
    """:func:`log_stride` of consecutive maps.

    A map that is smaller than the one before it, or 1 x 1 like it, is at least one stride further.
    """
    found: list[int | None] = []
    last = 0
    for shape in shapes:
        k = log_stride(shape, size)
        if k is not None and found and found[-1] is not None and (shape[-1] < last or shape[-1] == last == 1):
            k = max(k, found[-1] + 1)
        found.append(k)
        last = shape[-1]
    return found


# ---- stages


@dataclass
class Parts:
    """Address to shape of what a backbone returns, and of what the modules return that it calls itself.

    Only tensors of one row an image, and the first of each module; one that is changed in place is read where the
    last module takes it.
    """

    outputs: dict[str, tuple[int, ...]]
    #: The shape, and the parameters of the module that gives it.
    inner: dict[str, tuple[tuple[int, ...], int]]
    #: The part of ``inner`` that the backbone returns as it is, as ``outputs``.
    returned: dict[str, tuple[int, ...]]

    def common(self, other: 'Parts') -> 'Parts':
        """What two runs have in common."""
        pairs = ((vars(self)[name], vars(other)[name]) for name in vars(self))
        return Parts(*({a: s for a, s in own.items() if theirs.get(a) == s} for own, theirs in pairs))


def stages(model: nn.Module, size: tuple[int, int]) -> dict[str, str]:
    """Stage name to address for a model's ``backbone``.

    A stage is a resolution: stage1 is the last feature of stride 4, stage2 of stride 8, and so on. It is an output of
    the backbone if that returns this resolution, otherwise that of the last module that the backbone calls at it and
    that has a quarter of the parameters of the largest of them: no norm, no fusion. A backbone that returns a
    resolution twice has its outputs as stage1, stage2, … in their order. One with blocks of one resolution has four
    stages: the blocks at a quarter, a half, three quarters and the whole of the depth.

    Raises:
        NotFoundError: no backbone, or none of its features is the same in training and in evaluation.
    """
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, nn.Module):
        raise NotFoundError(f'it has no backbone; write a dict of tap name to address; {LIST_ALL}')
    parts = _run_backbone(model, size)
    outputs = parts.outputs or parts.returned
    maps = {address: shape for address, shape in outputs.items() if len(shape) == 4}
    maps = {a: k for a, k in zip(maps, log_strides(maps.values(), size)) if k is not None}
    maps = {a: k for a, k in maps.items() if k >= 2} or maps
    if len(set(maps.values())) < len(maps) or any(k < 2 for k in maps.values()):
        return {f'stage{i}': address for i, address in enumerate(maps, 1)}
    inside: dict[int, dict[str, int]] = {}  # log2 of the stride to address to parameters
    for address, (shape, count) in parts.inner.items():
        k = log_stride(shape, size)
        # A map of 1 x 1 is pooled.
        if k is not None and 2 <= k < math.log2(min(size)):
            inside.setdefault(k, {})[address] = count
    found = {k: [a for a, n in counts.items() if 4 * n >= max(counts.values())][-1] for k, counts in inside.items()}
    found |= {k: address for address, k in maps.items()}
    blocks = _blocks(parts.inner)
    if len(found) == 1 and len(blocks) >= 4:
        return {f'stage{i}': blocks[len(blocks) * i // 4 - 1] for i in range(1, 5)}
    named = {f'stage{k - 1}': found[k] for k in sorted(found)}
    if not (named or outputs):
        raise NotFoundError(
            f'its {type(backbone).__name__} gives no feature that is the same in training and evaluation; write a dict '
            f'of tap name to address; {LIST_ALL}'
        )
    return named or {f'stage{i}': address for i, address in enumerate(outputs, 1)}


def _blocks(inner: dict[str, tuple[tuple[int, ...], int]]) -> list[str]:
    """The longest list of modules in one ModuleList that give tensors of one shape."""
    lists: dict[tuple, list[str]] = {}
    for address, (shape, _) in inner.items():
        if block := re.fullmatch(r'(.*)\.\d+(\[0\])?', address):
            lists.setdefault((block[1], block[2], shape), []).append(address)
    return max(lists.values(), key=len, default=[])


def _run_backbone(model: nn.Module, size: tuple[int, int]) -> Parts:
    """What a run with the branches of training has in common with one in evaluation."""
    with preserved_rng(), eval_mode(model.backbone):
        parts = _called(model, size)
        with training_branches(model.backbone):
            return parts.common(_called(model, size))


def _called(model: nn.Module, size: tuple[int, int]) -> Parts:
    seen: dict[str, list[list[Seen]]] = {}  # path to the tensors of each call
    read: dict[int, Seen] = {}  # id of a tensor to where it is read last
    begun: Counter[str] = Counter()
    depth = 0

    def enter(path: str, value: Any) -> None:
        nonlocal depth
        if depth == 1 and isinstance(value, Tensor):
            read[id(value)] = Seen(Address(path, port='in', call=begun[path]), value, value._version)
        begun[path] += 1
        depth += 1

    def leave(path: str, output: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth <= 1:
            seen.setdefault(path, []).append(items(path, output))

    with contextlib.ExitStack() as stack:
        for path, module in model.backbone.named_modules(prefix='backbone'):
            stack.enter_context(watch_input(module, partial(enter, path)))
            stack.enter_context(watch_output(module, partial(leave, path)))
        model.backbone(next(model.parameters()).new_zeros(1, image_channels(model), *size))
    given = [s for of in seen.pop('backbone') for s in of]
    outputs = {str(s.address): tuple(s.tensor.shape) for s in given if s.intact and len(s.tensor) == 1}
    inner, returned = {}, {}
    for path, [tensors, *more] in seen.items():
        for s in tensors[:1] if not more else ():
            s = s if s.intact else read.get(id(s.tensor), s)
            if s.intact and len(s.tensor) == 1:
                module = model.get_submodule(path)
                where = replace(s.address, call=None) if begun[s.address.path] == 1 else s.address
                inner[str(where)] = tuple(s.tensor.shape), sum(p.numel() for p in module.parameters())
                if any(s.tensor is x.tensor for x in given):
                    returned[str(where)] = tuple(s.tensor.shape)
    return Parts(outputs, inner, returned)


# ---- levels and scores


def levels(model: nn.Module, size: tuple[int, int]) -> dict[str, str]:
    """Level name to address of the outputs of a neck: p3 has stride 8, p4 has 16, and so on; a vector is the embedding.

    Where two have one stride, they are level1, level2, …

    Raises:
        NotFoundError: the model has no neck that gives tensors.
    """
    if not isinstance(getattr(model, 'neck', None), nn.Module):
        raise NotFoundError("it has no neck; leave 'neck' out of the taps")
    _, outputs, error = _seen(model, size, {'neck': model.neck}, stop=True)
    if not outputs:
        raise error or NotFoundError("its neck gives no tensors; leave 'neck' out of the taps")
    if len(outputs) == 1 and outputs[0].tensor.dim() == 2:
        return dict(embedding=str(outputs[0].address))
    strides = log_strides((tuple(s.tensor.shape) for s in outputs), size)
    apart = None not in strides and len(set(strides)) == len(strides)
    return {f'p{k}' if apart else f'level{i}': str(s.address) for i, (k, s) in enumerate(zip(strides, outputs), 1)}


def scores(model: nn.Module, size: tuple[int, int]) -> dict[str, str]:
    """The address of the class scores, named logits; where levels have layers of their own, logits1, logits2, …

    It is the last layer with weights that runs and has an output channel for each class (and anchor) of its head;
    among several, one whose output the model's forward returns first.

    Raises:
        NotFoundError: there is no such layer, or its scores are of regions or queries, which differ between two nets.
    """
    for chooser in row_choosers(model):
        raise NotFoundError(
            f'its class scores are one row for each {chooser.rows}, and those of another net are other ones; compare '
            f'{comparable_parts(model)}'
        )
    weighted = {p: m for p, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None}
    returned, seen, error = _seen(model, size, weighted)
    found = [s for s in seen if _counts_classes(model, s)]
    returned = returned if isinstance(returned, (tuple, list)) else [returned]
    first, others = ([id(x) for part in parts for x in _tensors(part)] for parts in (returned[:1], returned[1:]))
    found = [s for s in found if id(s.tensor) in first] or [s for s in found if id(s.tensor) not in others] or found
    if any(kind.__name__ == 'BaseClassifier' for kind in type(model).__mro__) and model.head is not None:
        # Its number of classes may stand nowhere, and their layer in the backbone; what it returns are its scores.
        found = found or [s for s in seen if s.tensor.dim() == 2 and id(s.tensor) in first]
    if not found:
        raise error or NotFoundError(
            "no layer has one output channel for each class; leave 'logits' out of the taps, or name the layer, as in "
            f"dict(logits='head.fc'); {LIST_ALL}"
        )
    last = found[-1].address.path
    head, pattern = owner_head(model, last), re.sub(r'\.\d+', '.*', last)
    calls = dict.fromkeys(s.address.path for s in found)
    calls = {p: sum(s.address.path == p for s in seen) for p in calls if owner_head(model, p) is head}
    alike = [p + '#*' * (n > 1) for p, n in calls.items() if re.sub(r'\.\d+', '.*', p) == pattern]
    return {'logits' if len(alike) == 1 else f'logits{i}': address for i, address in enumerate(alike, 1)}


def _seen(
    model: nn.Module, size: tuple[int, int], modules: dict[str, nn.Module], stop: bool = False
) -> tuple[Any, list[Seen], Exception | None]:
    """What the plain forward returns, the tensors of the modules in order, and what the forward raised after them.

    If a head has no plain forward, those of the prediction. With ``stop``, the forward ends after the first of them.
    """
    seen: list[Seen] = []
    first: Exception | None = None

    def see(path: str, output: Any) -> None:
        seen.extend(items(path, output))
        if stop and seen:
            raise Finished

    for mode in ('tensor', 'predict'):
        seen.clear()
        with contextlib.ExitStack() as stack:
            for path, module in modules.items():
                stack.enter_context(watch_output(module, partial(see, path)))
            try:
                return run_once(model, size, mode), seen, None
            except Finished:
                return None, seen, None
            except Exception as error:  # a host may raise anything
                first = first or error
    return None, seen, first


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _counts_classes(model: nn.Module, seen: Seen) -> bool:
    """Whether the tensor has a channel for each class, or for each class and anchor, of the head that it is in."""
    linear = isinstance(model.get_submodule(seen.address.path), nn.Linear)
    axis = 1 if seen.tensor.dim() == 4 and not linear else -1
    head = owner_head(model, seen.address.path)
    return seen.tensor.dim() in (2, 3, 4) and scores_classes(head, seen.tensor.shape[axis])
