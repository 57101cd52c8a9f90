"""What is written to and read from disk: the student's keys plain, the rest apart; safe and strict loading."""

import contextlib
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

STATE_KEY = 'lckd_mm'
_PREFIXES = ('module.', 'architecture.', 'student.', 'teacher.', 'model.')
_SHOWN = 8


_METHODS = {
    HistoryBuffer: ('mean', 'min', 'max', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _own_method(owner: Any, name: str) -> Any:
    if name not in _METHODS.get(owner, ()):
        raise UnpicklingError(f'the file asks for {name!r} of {owner!r}, which no mmengine checkpoint does')
    return getattr(owner, name)


def register_safe_globals() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read what mmengine writes.

    mmengine pickles its log buffers and numpy scalars into each checkpoint; without this no checkpoint that it
    trained can be loaded or resumed. Only these few classes are added: nothing that could run code.
    """
    from numpy.dtypes import BoolDType, Float32DType, Float64DType, Int32DType, Int64DType, UInt8DType

    scalar, reconstruct = np._core.multiarray.scalar, np._core.multiarray._reconstruct
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            BoolDType,
            Float32DType,
            Float64DType,
            Int32DType,
            Int64DType,
            UInt8DType,
            scalar,
            reconstruct,
            # Files written under numpy 1 name the same two by its old path.
            (scalar, 'numpy.core.multiarray.scalar'),
            (reconstruct, 'numpy.core.multiarray._reconstruct'),
            OneCycleParamScheduler,
            # Log buffers and this scheduler refer to their own methods through getattr; only that is let through.
            (_own_method, 'builtins.getattr'),
        ]
    )


register_safe_globals()


def read_checkpoint(source: str, who: str) -> dict[str, Any]:
    """A checkpoint file as it stands, on the CPU, read with ``weights_only``.

    Args:
        source: a path, or an address that mmengine can fetch (``https://``, ``torchvision://``, ``open-mmlab://``).
    Raises:
        FileNotFoundError: no such file. ValueError: no checkpoint, or one that would run code on loading.
    """
    if '://' not in source and not Path(source).is_file():
        raise FileNotFoundError(f'{who}: no checkpoint at {source!r}; train it first, or give the path of its file')
    try:
        with _weights_only():
            loaded = CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='silent')
    except OSError:
        raise  # the disk or the network says it best
    except Exception as error:  # which one a damaged file raises in torch's unpickler is not to be foreseen
        # torch's own first line advises weights_only=False, which is the one thing not to do.
        forbidden = re.search(r'(?i)unsupported (?:global: )?(?:global|class) (\S+)', str(error))
        detail = re.search(r'WeightsUnpickler error:\s*(.+)', str(error))
        if forbidden:
            reason = f'it would run {forbidden[1]}'
        elif detail:
            reason = detail[1]
        else:
            reason = f'it is damaged, or none at all ({type(error).__name__} {" ".join(str(error).split())[:200]})'
        raise ValueError(f'{who}: cannot read the checkpoint {source!r}: {reason}') from error
    if not isinstance(loaded, dict):
        raise ValueError(f'{who}: {source!r} holds a {type(loaded).__name__}, not a checkpoint')
    return loaded


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """For what is fetched, too: mmengine leaves that to torch.hub, which by default loads it with pickle."""
    force = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    if force in os.environ or 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' in os.environ:
        yield  # the user has decided, and torch takes one of the two only
        return
    os.environ[force] = '1'
    try:
        yield
    finally:
        del os.environ[force]


def model_weights(source: str, who: str) -> 'OrderedDict[str, Tensor]':
    """The state dict in a checkpoint file: torchvision's names mapped to mmpretrain's, known prefixes taken off."""
    loaded = read_checkpoint(source, who)
    state = loaded.get('state_dict', loaded.get('model', loaded))
    pairs = state.items() if isinstance(state, Mapping) else ()
    weights = OrderedDict((k, v) for k, v in pairs if isinstance(k, str) and isinstance(v, Tensor))
    if not weights:
        raise ValueError(f'{who}: {source!r} holds no weights (keys: {", ".join(map(str, list(loaded)[:_SHOWN]))})')
    # Versions, by module, on which the hosts' own key migrations depend.
    versions = getattr(state, '_metadata', OrderedDict())
    if source.startswith('torchvision://'):
        return OrderedDict(
            (f'head.{key}' if key.startswith('fc.') else f'backbone.{key}', value) for key, value in weights.items()
        )
    stripped = True
    while stripped:
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in weights)), None)
        if prefix is None and any(key.startswith('architecture.') for key in weights):
            # mmrazor writes the teacher beside the student; the student is the part named architecture.
            weights = OrderedDict((k, v) for k, v in weights.items() if k.startswith('architecture.'))
            continue
        stripped = prefix is not None
        if stripped:
            weights = OrderedDict((key[len(prefix) :], value) for key, value in weights.items())
            versions = {k[len(prefix) :]: v for k, v in versions.items() if f'{k}.'.startswith(prefix)}
    weights._metadata = versions
    return weights


def load_strictly(model: nn.Module, source: str, who: str, allow: Iterable[str] = ()) -> None:
    """Load a checkpoint file into a model, or raise with the list of keys that do not fit.

    Strict is judged after the host's own key migrations (its load hooks), after known prefixes are taken off, and
    without ``num_batches_tracked``.

    Args:
        allow: regular expressions; a key that one of them matches may be missing or too many.
    Raises:
        ValueError: missing, unexpected or mis-shaped keys, or values that are not finite.
    """
    allow = [allow] if isinstance(allow, str) else list(allow)
    weights = model_weights(source, who)
    broken = [k for k, v in weights.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise ValueError(f'{who}: the checkpoint {source!r} holds nan or infinity in {_some(broken)}')
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if 'size mismatch' in line]
        raise ValueError(
            f'{who}: the checkpoint {source!r} is of another shape than {type(model).__name__}: '
            + ('; '.join(lines[:_SHOWN]) or str(error))
        ) from error

    def judged(keys: Iterable[str]) -> list[str]:
        return [k for k in keys if 'num_batches_tracked' not in k and not any(re.search(p, k) for p in allow)]

    missing, unexpected = judged(missing), judged(unexpected)
    if missing or unexpected:
        parts = [f'missing {_some(missing)}'] if missing else []
        parts += [f'unexpected {_some(unexpected)}'] if unexpected else []
        raise ValueError(
            f'{who}: the checkpoint {source!r} does not fit {type(model).__name__}: {"; ".join(parts)}; give the '
            'checkpoint of this architecture, or allow keys by name with allow=[…]'
        )


def _some(keys: list[str]) -> str:
    rest = f' and {len(keys) - _SHOWN} more' if len(keys) > _SHOWN else ''
    return f'{len(keys)} keys: ' + ', '.join(keys[:_SHOWN]) + rest if len(keys) > 1 else keys[0]


def export_keys(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    """A state_dict hook of the Distiller: the student's keys without their prefix, and no others.

    Rewrites ``state`` in place. Works at any depth (``prefix``), so that EMA's copy of the Distiller is plain too.
    """
    own = [key for key in state if key.startswith(prefix)]
    inner = prefix + 'student.'
    for key in own:
        value = state.pop(key)
        if key.startswith(inner):
            state[prefix + key[len(inner) :]] = value
    versions = getattr(state, '_metadata', None)
    if versions is not None:
        for key in [k for k in versions if f'{k}.'.startswith(prefix) and f'{k}.' != prefix]:
            value = versions.pop(key)
            if f'{key}.'.startswith(inner):
                versions[(prefix + key[len(inner) :]).rstrip('.')] = value


def import_keys(module: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    """A load_state_dict pre-hook of the Distiller: plain keys are the student's; the rest stays as it is.

    Connectors come from elsewhere (:data:`STATE_KEY`): here they are given their own values, so that a strict load
    of a plain checkpoint misses nothing.
    """
    for key in [k for k in state if k.startswith(prefix)]:
        value = state.pop(key)
        state[prefix + 'student.' + key[len(prefix) :]] = value
    for key, value in module.terms.state_dict(prefix=prefix + 'terms.').items():
        state[key] = value
