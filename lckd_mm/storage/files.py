"""Files on disk: atomic writes, loading without running code, and the search for the newest good checkpoint."""

import contextlib
import errno
import functools
import io
import itertools
import os
import re
import socket
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import mmengine.fileio.io
import mmengine.runner.checkpoint
import numpy as np
import torch
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import LocalBackend, register_backend
from mmengine.fileio.backends import registry_utils
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader

from ..errors import WriteError, one_line

_PARTIAL = '.partial'
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Keys that mmengine's Runner needs to resume from a checkpoint.
_RESUMABLE = ('meta', 'state_dict', 'message_hub')
_trusted: set[str] = set()


def near(path: str | Path) -> str:
    """A path as it is, or relative to the working directory if it lies there."""
    whole, here = Path(path), Path.cwd()
    return str(whole.relative_to(here)) if whole.is_absolute() and whole.is_relative_to(here) else str(path)


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file atomically: at any moment, even after a crash, it has either the old or the new content.

    The data goes to a temporary file in the same folder (``.<name>.<host>.<process>.partial``), which is then renamed.

    Raises:
        WriteError: the disk is full, or a limit or permission prevents writing; the temporary file is removed.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    partial = os.path.join(folder, f'.{name[:100]}.{socket.gethostname()}.{os.getpid()}{_PARTIAL}')
    if os.path.exists(target) and not os.path.isfile(target):
        Path(target).write_bytes(data)  # a device, such as /dev/null, must not be replaced by a file
        return
    try:
        os.makedirs(folder, exist_ok=True)
        with open(partial, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(partial)
        if not isinstance(error, OSError):
            raise
        room = '; make room there' if error.errno in _NO_ROOM else ''
        raise WriteError(f'cannot write {str(path)!r} ({len(data)} bytes): {error.strerror or error}{room}') from error


def save_whole(content: Any, path: str | Path) -> None:
    """``torch.save`` through :func:`write_whole`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getvalue())


def remove_partials(folder: str | Path) -> list[str]:
    """Remove the temporary files that killed processes left in a folder, and return their names.

    Files of processes that run on this machine are kept, and those of other machines for a day.
    """
    removed = []
    for path in Path(folder).glob(f'.*{_PARTIAL}'):
        owner, _, process = path.name.removesuffix(_PARTIAL).rpartition('.')
        with contextlib.suppress(OSError):
            if not process.isdigit():
                continue
            ours = owner.endswith(f'.{socket.gethostname()}')
            alive = _runs(int(process)) if ours else path.stat().st_mtime > time.time() - 24 * 3600
            if not alive:
                path.unlink()
                removed.append(path.name)
    return removed


def _runs(process: int) -> bool:
    """Whether another process with this number is running; a restarted container may give this one the old number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


class WholeFileBackend(LocalBackend):
    """mmengine's LocalBackend with :func:`write_whole`; replaces it for paths without a scheme."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_whole(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        write_whole(filepath, obj.encode(encoding))


_METHODS = {
    HistoryBuffer: ('mean', 'min', 'max', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _own_method(owner: Any, name: str) -> Any:
    if name not in _METHODS.get(owner, ()):
        raise UnpicklingError(f'the file asks for {name!r} of {owner!r}, which no mmengine checkpoint does')
    return getattr(owner, name)


def _register_safe_globals() -> None:
    """Allow the log buffers and numpy scalars that mmengine pickles into every checkpoint; none can run code."""
    numbers = [getattr(np.dtypes, f'{k}DType') for k in ('Bool', 'UInt8', 'Int32', 'Int64', 'Float32', 'Float64')]
    scalar, reconstruct = np._core.multiarray.scalar, np._core.multiarray._reconstruct
    # Files written with numpy 1 name the last two by their old path.
    old = [(f, f'numpy.core.multiarray.{f.__name__}') for f in (scalar, reconstruct)]
    # Log buffers and OneCycleParamScheduler pickle their own methods as getattr; only those are allowed.
    methods = [HistoryBuffer, OneCycleParamScheduler, (_own_method, 'builtins.getattr')]
    torch.serialization.add_safe_globals([np.ndarray, np.dtype, *numbers, scalar, reconstruct, *old, *methods])


def trust(source: str | Path) -> None:
    """Allow this file to be read by plain pickle, which can run any code. There is no other way to allow that."""
    _trusted.add(str(source))


@contextlib.contextmanager
def _weights_only(value: bool) -> Iterator[None]:
    """Load with ``weights_only=value``, which TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD and torch.hub would change."""
    load = torch.load
    torch.load = lambda *args, **kwargs: load(*args, **{**kwargs, 'weights_only': value})
    try:
        yield
    finally:
        torch.load = load


def _safely(load: Callable) -> Callable:
    """Make one of mmengine's loaders safe: weights only, a check for damage, and a one-sentence error."""

    @functools.wraps(load)
    def load_safely(filename: str, map_location: Any = None, **kwargs: Any) -> Any:
        if str(filename) in _trusted:
            with _weights_only(False):
                return load(filename, map_location, **kwargs)
        try:
            _check_intact(os.path.expanduser(filename))
            with _weights_only(True):
                loaded = load(filename, map_location, **kwargs)
        except Exception as error:  # torch's unpickler can raise anything on a damaged file
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a truncated file gives EINVAL
                raise
            raise ValueError(f'cannot read the checkpoint {str(filename)!r}: {_reason(error)}') from error
        meta = loaded.get('meta') if isinstance(loaded, dict) else None
        if isinstance(meta, dict):
            # Runner.resume would run this text as Python. mmengine itself writes `cfg`, which is never run.
            meta.pop('config', None)
        return loaded

    return load_safely


def _reason(error: Exception) -> str:
    # torch's own message advises weights_only=False, which would run the file's code.
    detail = re.search(r'WeightsUnpickler error:\s*(.+)', str(error))
    if name := forbidden_name(error):
        return (
            f'it would run {name}, and only tensors and plain values are read; if you trust whoever made it '
            'with your account, say so with --trust-checkpoint FILE'
        )
    reason = type(error).__name__ if 'weights_only' in str(error) else one_line(error)
    return f'it is damaged or not a checkpoint of torch ({detail[1] if detail else reason})'


def forbidden_name(error: Exception) -> str | None:
    """The function or class that torch's unpickler refused, if that is the error."""
    found = re.search(r'(?i)unsupported (?:global: )?(?:global|class) (\S+)', str(error))
    return found and found[1]


def _check_intact(path: str) -> None:
    """Raise for an empty local file and for a damaged archive: torch does not verify the checksums that it writes."""
    if not os.path.isfile(path):
        return
    with open(path, 'rb') as file:
        start = file.read(2)
    if not start:
        raise EOFError('the file is empty')
    if start == b'PK':
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            raise zipfile.BadZipFile(f'the checksum of {broken!r} is wrong')


def read_checkpoint(source: str, who: str) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU, always read with ``weights_only``.

    Args:
        source: a path, or a URL that mmengine can fetch (``https://``, ``torchvision://``, ``open-mmlab://``).
    Raises:
        FileNotFoundError: no such file. ValueError: not a checkpoint, a damaged one, or one that would run code when
            loaded.
    """
    if '://' not in source and not os.path.isfile(os.path.expanduser(source)):
        raise FileNotFoundError(f'{who}: no checkpoint at {source!r}; train it first, or give the path of its file')
    if source.endswith('.safetensors') and '://' not in source:
        return _safetensors(os.path.expanduser(source), who)
    try:
        with installed():
            loaded = CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='silent')
    except ValueError as error:
        raise ValueError(f'{who}: {error}') from error
    except OSError as error:
        if '://' not in source:
            raise
        raise FileNotFoundError(
            f'{who}: {source!r} cannot be fetched ({one_line(error)}); download it, and give the path of the file'
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f'{who}: {source!r} holds a {type(loaded).__name__}, not a checkpoint')
    return loaded


def _safetensors(path: str, who: str) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ModuleNotFoundError(
            f'{who}: {near(path)!r} needs the package safetensors; install it, or give a file written by torch.save',
            name='safetensors',
        ) from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f'{who}: {near(path)!r} is no intact file of safetensors ({one_line(error)})') from error


def read_resumable(source: str) -> dict[str, Any]:
    """A checkpoint to resume from; raises as :func:`read_checkpoint`, and ValueError if keys are missing."""
    loaded = read_checkpoint(source, 'resume')
    missing = [key for key in _RESUMABLE if not isinstance(loaded.get(key), dict)]
    if missing:
        raise ValueError(
            f'resume: {source!r} was not saved by a run (it has no {", ".join(missing)}); start from its weights with '
            'load_from instead'
        )
    return loaded


def newest_good(
    work_dir: str | Path, folders: Iterable[str | Path] = (), names: Iterable[str] = ()
) -> tuple[str, dict[str, Any], list[str]] | None:
    """The checkpoint from which a run in ``work_dir`` resumes; None if it has saved none yet.

    Tries the file named in ``last_checkpoint``, then ``iter_*.pth`` and ``epoch_*.pth``, newest first. Each is read
    completely; a damaged one is skipped and left in place.

    Args:
        folders: further folders with checkpoints. names: further templates of file names, with ``{}`` for the number.
    Returns:
        Its path, its content, and a sentence for each skipped checkpoint.
    Raises:
        ValueError: there are checkpoints, but none is good. FileNotFoundError: ``last_checkpoint`` exists, but no
            checkpoint.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    named = pointer.read_bytes().decode(errors='replace').strip('\0 \n\r\t') if pointer.is_file() else ''
    # A relative path refers to the folder where training was started, which may be another one.
    candidates = [path for path in (Path(named), Path(work_dir, Path(named).name)) if path.is_file()][:1]
    others = saved_checkpoints([work_dir, *folders], names)
    candidates += [path for path in others if not any(path.samefile(known) for known in candidates)]
    if not candidates:
        if not pointer.is_file():
            return None
        raise FileNotFoundError(
            f'resume: {str(pointer)!r} names {named!r}, and neither that nor any other checkpoint is there; put it '
            f'back, or remove {pointer.name} to train from the start'
        )
    notes = []
    for path in candidates:
        try:
            loaded = read_resumable(str(path))
        except (ValueError, OSError) as error:
            notes.append(str(error))
        else:
            return str(path), loaded, notes
    raise ValueError(
        f'resume: none of the {len(candidates)} checkpoints in {str(work_dir)!r} can be read ({"; ".join(notes)}); '
        'move them away to train from the start'
    )


def last_checkpoint(folder: str | Path) -> Path | None:
    """The file named in ``last_checkpoint``, in the folder (which may have been moved) or at its path; None if gone."""
    file = Path(folder, 'last_checkpoint')
    path = Path(file.read_text().strip()) if file.is_file() else None
    return path and next((p for p in (Path(folder, path.name), path) if p.is_file()), None)


def saved_checkpoints(folders: Iterable[str | Path], names: Iterable[str] = ()) -> list[Path]:
    """The runs' checkpoints in some folders, newest first: by modification time, then by number."""
    patterns = [re.escape(name).replace(r'\{\}', r'(\d+)') for name in ('iter_{}.pth', 'epoch_{}.pth', *names)]
    found = {}
    for folder in {*map(Path, folders)}:
        for path, pattern in itertools.product(folder.glob('*'), patterns):
            if match := re.fullmatch(pattern, path.name):
                found[path] = (path.stat().st_mtime_ns, int(match[1]))
    return sorted(found, key=found.get, reverse=True)


def _fork_load(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    """Plain ``torch.load``, in place of the function in the maintained fork of mmengine.

    The fork allows any getattr, drops the classes allowed here after each file, and falls back to plain pickle for
    files that it cannot read.
    """
    return torch.load(file, map_location=map_location, weights_only=weights_only)


# With the module's own name mmengine finds the installed package, upstream or fork; with the name in its own table it
# would pip-install upstream's. For an editable install the metadata name a folder that does not exist; a submodule
# gives the right one.
_PACKAGES = {'mmpretrain': 'mmpretrain', 'mmseg': 'mmseg', 'mmdet': 'mmdet', 'lckd_mm': 'lckd_mm.registry'}
_undo: list[Callable[[], None]] = []


def install() -> None:
    """Patch how mmengine and torch read and write files in this process:

    * ``torch.load(weights_only=True)``, the default since torch 2.6, accepts the few classes that mmengine writes;
    * mmengine's checkpoint loaders read weights only, and report damaged files;
    * mmengine writes local files atomically (:class:`WholeFileBackend`);
    * ``mmseg::…`` and similar names find the installed host libraries, and install nothing.

    The tools and, before a run, this package's hooks call it: without it mmengine cannot resume from its own files.
    Importing lckd_mm or building a Distiller does not. A second call does nothing; :func:`uninstall` reverts it.
    """
    if _undo:
        return
    cache, loaders = mmengine.fileio.io.backend_instances, CheckpointLoader._schemes
    for table in (cache, registry_utils.backends, registry_utils.prefix_to_backends, loaders, MODULE2PACKAGE):
        _undo.append(functools.partial(_refill, table, dict(table)))
    allowed = torch.serialization.get_safe_globals()
    _undo.append(functools.partial(torch.serialization.add_safe_globals, allowed))
    _undo.append(torch.serialization.clear_safe_globals)  # undone in reverse: first this, then the line above
    _register_safe_globals()
    fork = getattr(mmengine.runner.checkpoint, '_safe_torch_load', None)
    if fork is not None:
        mmengine.runner.checkpoint._safe_torch_load = _fork_load
        _undo.append(lambda: setattr(mmengine.runner.checkpoint, '_safe_torch_load', fork))
    cache.clear()
    register_backend('local', WholeFileBackend, force=True, prefixes='')
    loaders.update({prefix: _safely(load) for prefix, load in loaders.items()})
    MODULE2PACKAGE.update(_PACKAGES)


def uninstall() -> None:
    """Revert :func:`install`."""
    while _undo:
        _undo.pop()()


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """:func:`install` for the duration of a ``with`` block."""
    before = bool(_undo)
    install()
    try:
        yield
    finally:
        if not before:
            uninstall()


def _refill(table: dict, content: dict) -> None:
    table.clear()
    table.update(content)
