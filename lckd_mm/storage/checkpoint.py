"""Contents of checkpoints: the student's keys without prefix, everything else separate; safe and strict loading."""

import copy
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import one_line
from .files import read_checkpoint

STATE_KEY = 'lckd_mm'
_PREFIXES = ('module.', 'architecture.', 'student.', 'teacher.', 'model.')
_STUDENTS = ('architecture.', 'student.')
_STATES = ('state_dict', 'model', 'ema_state_dict')
_SHOWN = 8
_SIZES = 'size mismatch'


def model_weights(source: str, who: str) -> 'OrderedDict[str, Tensor]':
    """The state dict in a checkpoint file, with torchvision's names mapped to mmpretrain's and known prefixes removed.

    For a file written by mmengine's EMAHook these are the averaged weights, as in every host's test; for a file with
    only an ``ema_state_dict``, that.
    """
    return _weights(read_checkpoint(source, who), source, who)


def _weights(loaded: Mapping, source: str, who: str, own: Iterable[str] = ()) -> 'OrderedDict[str, Tensor]':
    """The weights in a file's content; their names stay as they are where ``own``, those of a model, has some."""
    state = next((loaded[key] for key in _STATES if isinstance(loaded.get(key), Mapping)), loaded)
    weights = OrderedDict((k, v) for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor))
    if state is loaded.get('ema_state_dict'):
        weights.pop('steps', None)  # the EMA's step counter
    if not weights:
        raise ValueError(f'{who}: {source!r} holds no weights (keys: {", ".join(map(str, list(loaded)[:_SHOWN]))})')
    # Version per module; the hosts' key migrations depend on it.
    versions = getattr(state, '_metadata', OrderedDict())
    if weights.keys() & set(own):
        weights._metadata = versions
        return weights
    if source.startswith('torchvision://'):
        return OrderedDict(
            (f'head.{key}' if key.startswith('fc.') else f'backbone.{key}', value) for key, value in weights.items()
        )
    # All keys share a prefix; or some begin with the student's, in files that hold the teacher too.
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in weights)), None) or next(
        (p for p in _STUDENTS if any(key.startswith(p) for key in weights)), None
    ):
        weights = OrderedDict((k.removeprefix(prefix), v) for k, v in weights.items() if k.startswith(prefix))
        versions = {k[len(prefix) :]: v for k, v in versions.items() if f'{k}.'.startswith(prefix)}
    weights._metadata = versions
    return weights


def load_strictly(model: nn.Module, source: str, who: str, allow: Iterable[str] = ()) -> Mapping[str, Any]:
    """Load a checkpoint file into a model; raise with the list of keys that do not match.

    Keys are compared after the host's key migrations (its load hooks), after removing known prefixes, and without
    ``num_batches_tracked``.

    Args:
        allow: regular expressions; keys that match one of them may be missing or unexpected, but not of another shape.
    Returns:
        The file's ``meta``, which mmengine writes; empty if it has none.
    Raises:
        ValueError: missing or unexpected keys, wrong shapes, or non-finite values.
    """
    allow = [allow] if isinstance(allow, str) else list(allow)
    loaded = read_checkpoint(source, who)
    weights = _weights(loaded, source, who, model.state_dict())
    check_finite(weights, source, who)
    found = {
        what: [key for key in keys if what == _SIZES or not any(re.search(pattern, key) for pattern in allow)]
        for what, keys in _load(model, weights).items()
    }
    if any(found.values()):
        raise ValueError(
            f'{who}: the checkpoint {source!r} does not fit {type(model).__name__}: {_listed(found)}; give the '
            'checkpoint of this architecture' + ('' if found[_SIZES] else ', or allow keys by name with allow=[…]')
        )
    return meta if isinstance(meta := loaded.get('meta'), Mapping) else {}


def check_finite(weights: Mapping[str, Tensor], source: str, who: str) -> None:
    """Raise ValueError for weights with nan or infinity."""
    broken = [k for k, v in weights.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise ValueError(f'{who}: the checkpoint {source!r} holds nan or infinity in {_some(broken)}')


def check_loading(model: nn.Module, loaded: dict[str, Any], source: str, who: str, strict: bool = False) -> str | None:
    """Check how a checkpoint matches a model into which mmengine will load it without a check; changes neither.

    mmengine's ``load_from``, ``resume`` and ``init_cfg=dict(type='Pretrained')`` load the keys that match and leave the
    rest random. Keys are compared after the host's key migrations (its load hooks).

    Args:
        strict: every key must match, except ``num_batches_tracked``.
    Returns:
        A sentence with the keys that do not match; None if all do.
    Raises:
        ValueError: no key matches, or not all with ``strict``; non-finite values; no weights at all.
    """
    state = loaded.get('state_dict', loaded)
    weights = OrderedDict((k.removeprefix('module.'), v) for k, v in state.items() if isinstance(v, Tensor))
    if not weights:
        keys = ', '.join(map(str, list(state)[:_SHOWN]))
        raise ValueError(f'{who}: {source!r} holds no weights where mmengine looks for them (keys: {keys})')
    check_finite(weights, source, who)
    weights._metadata = getattr(state, '_metadata', OrderedDict())
    own = [key for key in model.state_dict() if 'num_batches_tracked' not in key]
    # A Distiller reports keys with the prefix 'student.', which its state_dict omits.
    found = {k: [x.removeprefix('student.') for x in v] for k, v in _load(copy.deepcopy(model), weights).items()}
    fitting = len(set(own) - set(found['missing']) - {text.partition(' ')[0] for text in found[_SIZES]})
    name = type(getattr(model, 'student', model)).__name__
    if not fitting:
        prefix = next((p for p in _PREFIXES if any(k.startswith(p) for k in weights)), None)
        hint = f'; its keys begin with {prefix!r}, which mmengine does not remove' if prefix else ''
        raise ValueError(
            f'{who}: nothing in {source!r} fits {name}: it has {_some(list(weights))}, and the model {_some(own)}{hint}'
        )
    if not any(found.values()):
        return None
    report = f'{who}: {source!r} fits {name} in {fitting} of its {len(own)} tensors; {_listed(found)}'
    if strict:
        raise ValueError(f'{report}; give a checkpoint of this model, or start from its weights with load_from')
    return f'{report}; what does not fit keeps its initial values'


def _load(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Load what fits into a model; the keys that are missing, unexpected or have another shape."""
    sizes: list[str] = []
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        mismatches = re.findall(r'size mismatch for (\S+): .*?(\[.*?\]).*?(\[.*?\])', str(error))
        if not mismatches:
            raise ValueError(f'cannot load the weights: {one_line(error)}') from error
        sizes = [f'{key} ({theirs} in the file, {ours} in the model)' for key, theirs, ours in mismatches]
        own = model.state_dict()
        missing, unexpected = [k for k in own if k not in weights], [k for k in weights if k not in own]
    if missing:
        # What a host's load hook removes, since the model computes it itself, is missing from its own state, too.
        computed = model.load_state_dict(model.state_dict(), strict=False).missing_keys
        missing = [key for key in missing if key not in computed]
    found = {_SIZES: sizes, 'missing': missing, 'unexpected': unexpected}
    return {what: [key for key in keys if 'num_batches_tracked' not in key] for what, keys in found.items()}


def _listed(found: Mapping[str, list[str]]) -> str:
    return '; '.join(f'{what} {_some(keys)}' for what, keys in found.items() if keys)


def _some(keys: list[str]) -> str:
    rest = f' and {len(keys) - _SHOWN} more' if len(keys) > _SHOWN else ''
    return f'{len(keys)} keys: ' + ', '.join(keys[:_SHOWN]) + rest if len(keys) > 1 else keys[0]


def student_alone(source: str, config: str, who: str) -> dict[str, Any]:
    """A checkpoint's weights, as :func:`model_weights`, and its meta, with values that every ``torch.load`` reads.

    mmengine's own files hold more than torch reads by default from version 2.6 on, where the hosts' tools refuse them.

    Args:
        config: the text of the student's own config, for tools that take it from the file.
    """
    loaded = read_checkpoint(source, who)
    meta = {key: value for key, value in (loaded.get('meta') or {}).items() if _is_plain(value)}
    return dict(meta=meta | dict(cfg=config), state_dict=_weights(loaded, source, who))


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def add_state(checkpoint: dict, **state: Any) -> None:
    """Store what a hook needs to resume beside the student's weights, under the key ``lckd_mm``."""
    checkpoint.setdefault(STATE_KEY, {}).update(state)


def stored_state(checkpoint: dict, key: str) -> Any:
    """What :func:`add_state` stored under ``key``; None if there is none."""
    return (checkpoint.get(STATE_KEY) or {}).get(key)


def resumed_state(runner: Any, checkpoint: dict, key: str, hook: str) -> Any:
    """:func:`stored_state` of the checkpoint from which a run resumes; None if it only loads its weights.

    Raises:
        ValueError: there is none.
    """
    if not runner._resume:
        return None
    state = stored_state(checkpoint, key)
    if state is None:
        raise ValueError(
            f'resume: the checkpoint has no {key!r} under {STATE_KEY!r}, so its run had no {hook}; start from it with '
            'load_from instead of resuming'
        )
    return state


def export_keys(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    """A state_dict hook of the Distiller: keeps only the student's keys, without their prefix.

    Changes ``state`` in place. Works at any depth (``prefix``), so EMA's copy of the Distiller is saved the same way.
    """
    inner = prefix + 'student.'
    for key in [k for k in state if k.startswith(prefix)]:
        value = state.pop(key)
        if key.startswith(inner):
            state[prefix + key[len(inner) :]] = value
    versions = getattr(state, '_metadata', {})
    for key in [k for k in versions if f'{k}.'.startswith(prefix) and f'{k}.' != prefix]:
        value = versions.pop(key)
        if f'{key}.'.startswith(inner):
            versions[(prefix + key[len(inner) :]).rstrip('.')] = value


def import_keys(module: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    """A load_state_dict pre-hook of the Distiller: adds the student's prefix to plain keys.

    Connectors are loaded separately (:data:`STATE_KEY`). Their current values are filled in here, so that a strict load
    of a plain checkpoint has no missing keys.
    """
    for key in [k for k in state if k.startswith(prefix)]:
        state[prefix + 'student.' + key[len(prefix) :]] = state.pop(key)
    state.update(module.terms.state_dict(prefix=prefix + 'terms.'))
