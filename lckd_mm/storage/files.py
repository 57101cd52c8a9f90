"""Files on disk: atomic writes, loading without running code, and the search for the newest good checkpoint."""

import contextlib
import errno
import functools
import io
import os
import re
import socket
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import mmengine.fileio.io
import mmengine.runner.checkpoint
import numpy as np
import torch
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import FileClient, LocalBackend, register_backend
from mmengine.fileio.backends import registry_utils
from mmengine.fileio.file_client import HardDiskBackend
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader

from ..errors import WriteError

_PARTIAL = '.partial'
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DAY = 24 * 3600
#: Keys that mmengine's Runner needs to resume from a checkpoint.
_RESUMABLE = ('meta', 'state_dict', 'message_hub')
_trusted: set[str] = set()


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file atomically: at any moment, even after a crash, it has either the old or the new content.

    The data is written and synced to a temporary file in the same folder (``.<name>.<host>.<process>.partial``), which
    is then renamed. A device or a pipe is written directly.

    Raises:
        WriteError: the disk is full, or a limit or permission prevents writing; the temporary file is removed.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    partial = os.path.join(folder, f'.{name[:100]}.{socket.gethostname()}.{os.getpid()}{_PARTIAL}')
    in_place = os.path.exists(target) and not os.path.isfile(target)
    try:
        os.makedirs(folder, exist_ok=True)
        with open(target if in_place else partial, 'wb') as file:
            file.write(data)
            if not in_place:
                file.flush()
                os.fsync(file.fileno())
        if not in_place:
            os.replace(partial, target)
            _sync_folder(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(partial)
        if not isinstance(error, OSError):
            raise
        room = '; make room there' if error.errno in _NO_ROOM else ''
        failure = WriteError(f'cannot write {str(path)!r} ({len(data)} bytes): {error.strerror or error}{room}')
        failure.errno = error.errno
        raise failure from error


def save_whole(content: Any, path: str | Path) -> None:
    """``torch.save`` through :func:`write_whole`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getvalue())


def _sync_folder(folder: str) -> None:
    """Sync a rename to the disk, if the file system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_partials(folder: str | Path) -> list[str]:
    """Remove temporary files that killed processes left in a folder, and return their names.

    Keeps files of processes still running on this machine, and files of other machines that are less than a day old.
    """
    removed = []
    for path in Path(folder).glob(f'.*{_PARTIAL}'):
        parts = path.name.removesuffix(_PARTIAL).rsplit('.', 1)
        if len(parts) != 2 or not parts[1].isdigit():
            continue
        process = int(parts[1])
        with contextlib.suppress(OSError):
            if parts[0].endswith(f'.{socket.gethostname()}'):
                if process != os.getpid() and _runs(process):
                    continue
            elif time.time() - path.stat().st_mtime < _DAY:
                continue
            path.unlink()
            removed.append(path.name)
    return removed


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class _Whole:
    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_whole(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        write_whole(filepath, obj.encode(encoding))


class WholeFileBackend(_Whole, LocalBackend):
    """mmengine's LocalBackend with :func:`write_whole`; replaces it for paths without a scheme."""


class WholeFileDiskBackend(_Whole, HardDiskBackend):
    """The same for mmengine's deprecated ``file_client_args=dict(backend='disk')``."""


_METHODS = {
    HistoryBuffer: ('mean', 'min', 'max', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _own_method(owner: Any, name: str) -> Any:
    if name not in _METHODS.get(owner, ()):
        raise UnpicklingError(f'the file asks for {name!r} of {owner!r}, which no mmengine checkpoint does')
    return getattr(owner, name)


def register_safe_globals() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read mmengine's checkpoints.

    mmengine pickles log buffers and numpy scalars into every checkpoint; without this none of them can be loaded or
    resumed. Only these few classes are added; none can run code.
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
            # Files written with numpy 1 name the same two by their old path.
            (scalar, 'numpy.core.multiarray.scalar'),
            (reconstruct, 'numpy.core.multiarray._reconstruct'),
            OneCycleParamScheduler,
            # Log buffers and this scheduler pickle their own methods as getattr; only those are allowed.
            (_own_method, 'builtins.getattr'),
        ]
    )


def trust(source: str | Path) -> None:
    """Allow this file to be read by plain pickle, which can run any code. There is no other way to allow that."""
    _trusted.add(str(source))


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    load = torch.load

    def load_weights(*args: Any, **kwargs: Any) -> Any:
        # Explicit, because TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD changes the default, and torch.hub passes False.
        return load(*args, **{**kwargs, 'weights_only': True})

    torch.load = load_weights
    try:
        yield
    finally:
        torch.load = load


@contextlib.contextmanager
def _full_powers() -> Iterator[None]:
    load = torch.load
    torch.load = lambda *args, **kwargs: load(*args, **{**kwargs, 'weights_only': False})
    try:
        yield
    finally:
        torch.load = load


def _safely(load: Callable) -> Callable:
    """Make one of mmengine's loaders safe: weights only, a check for damage, and a one-sentence error."""

    @functools.wraps(load)
    def load_safely(filename: str, map_location: Any = None, **kwargs: Any) -> Any:
        if str(filename) in _trusted:
            with _full_powers():
                return load(filename, map_location, **kwargs)
        local = os.path.expanduser(filename)
        reason = _damage(local) if os.path.exists(local) else None
        if reason:
            raise ValueError(f'cannot read the checkpoint {str(filename)!r}: {reason}')
        try:
            with _weights_only():
                loaded = load(filename, map_location, **kwargs)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise  # errors of the disk or network are clear as they are
            # In a truncated file torch seeks to a negative position.
            raise ValueError(f'cannot read the checkpoint {str(filename)!r}: it is cut short') from error
        except Exception as error:  # torch's unpickler can raise anything on a damaged file
            raise ValueError(f'cannot read the checkpoint {str(filename)!r}: {_reason(error)}') from error
        meta = loaded.get('meta') if isinstance(loaded, dict) else None
        if isinstance(meta, dict):
            # Runner.resume would run this text as Python. mmengine itself writes `cfg`, which is never run.
            meta.pop('config', None)
        return loaded

    return load_safely


def _reason(error: Exception) -> str:
    # torch's own message advises weights_only=False, which would run the file's code.
    forbidden = re.search(r'(?i)unsupported (?:global: )?(?:global|class) (\S+)', str(error))
    detail = re.search(r'WeightsUnpickler error:\s*(.+)', str(error))
    if forbidden:
        return (
            f'it would run {forbidden[1]}, and only tensors and plain values are read; if you trust whoever made it '
            'with your account, say so with --trust-checkpoint FILE'
        )
    if detail and 'operand' in detail[1]:
        return f'it is no checkpoint of torch ({detail[1]} at its beginning)'
    if detail:
        return detail[1]
    return f'it is damaged, or none at all ({type(error).__name__} {" ".join(str(error).split())[:200]})'


def _damage(path: str) -> str | None:
    """Why a local file is not an intact checkpoint, as far as visible without unpickling; None if it may be one.

    torch itself does not verify the checksums that it writes.
    """
    if os.path.isdir(path):
        return 'it is a folder'
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        head = file.read(256)
    if size == 0:
        return 'the file is empty'
    if head.lstrip()[:1] == b'<':
        return 'it is a web page, and no checkpoint: download it again'
    if head.startswith(b'version https://git-lfs'):
        return 'it is the pointer that git-lfs leaves in place of a file: fetch it with git lfs pull'
    if not any(head):
        return 'it begins with zeros, and no checkpoint does'
    if head[:2] != b'PK':
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                return 'it claims to unpack to more bytes than it has, which no checkpoint of torch does'
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        # RuntimeError: encrypted, or compressed by a method that zipfile does not support.
        return f'it is cut short or damaged ({error})'
    return f'it is damaged: the checksum of {broken!r} is wrong' if broken else None


def read_checkpoint(source: str, who: str) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU, always read with ``weights_only``.

    Args:
        source: a path, or a URL that mmengine can fetch (``https://``, ``torchvision://``, ``open-mmlab://``).
    Raises:
        FileNotFoundError: no such file. ValueError: not a checkpoint, a damaged one, or one that would run code when
            loaded.
    """
    if '://' not in source and not os.path.exists(os.path.expanduser(source)):
        raise FileNotFoundError(f'{who}: no checkpoint at {source!r}; train it first, or give the path of its file')
    if os.path.isdir(os.path.expanduser(source)):
        raise FileNotFoundError(f'{who}: no checkpoint at {source!r}, which is a folder; give the path of a file')
    try:
        with installed():
            loaded = CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='silent')
    except ValueError as error:
        raise ValueError(f'{who}: {error}') from error
    if not isinstance(loaded, dict):
        raise ValueError(f'{who}: {source!r} holds a {type(loaded).__name__}, not a checkpoint')
    return loaded


def read_resumable(source: str) -> dict[str, Any]:
    """A checkpoint to resume from; raises as :func:`read_checkpoint`, and ValueError if keys are missing."""
    loaded = read_checkpoint(source, 'resume')
    missing = [key for key in _RESUMABLE if not isinstance(loaded.get(key), dict)]
    missing += [f'meta.{key}' for key in ('epoch', 'iter') if key not in (loaded.get('meta') or {})]
    if missing:
        raise ValueError(
            f'resume: {source!r} is no checkpoint of a run (it has no {", ".join(missing)}); start from its weights '
            'with load_from instead'
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
    candidates = []
    if named:
        # A relative path refers to the folder where training was started, which may be another one.
        candidates = [path for path in (Path(named), Path(work_dir, Path(named).name)) if path.exists()][:1]
    others = saved_checkpoints([work_dir, *folders], names)
    candidates += [path for path in others if not any(path.samefile(known) for known in candidates)]
    if not candidates:
        if not pointer.is_file():
            return None
        raise FileNotFoundError(
            f'resume: {str(pointer)!r} names {named!r}, and neither that nor any other checkpoint is there; put it '
            f'back, or remove {pointer.name} to start anew'
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
        f'resume: none of the {len(candidates)} checkpoints in {str(work_dir)!r} can be gone on from '
        f'({"; ".join(notes)}); move them away to start anew'
    )


def saved_checkpoints(folders: Iterable[str | Path], names: Iterable[str] = ()) -> list[Path]:
    """The runs' checkpoints in some folders, newest first: by modification time, then by number."""
    patterns = [re.escape(name).replace(r'\{\}', r'(\d+)') for name in ('iter_{}.pth', 'epoch_{}.pth', *names)]
    found = {}
    for folder in dict.fromkeys(map(str, folders)):
        for path in Path(folder).iterdir() if Path(folder).is_dir() else ():
            number = next((int(m[1]) for m in (re.fullmatch(p, path.name) for p in patterns) if m), None)
            if number is not None:
                found[path] = (path.stat().st_mtime_ns, number)
    return sorted(found, key=found.get, reverse=True)


def good_sibling(path: str | Path) -> str | None:
    """The newest good checkpoint in the folder of a broken one, for its error message."""
    for other in saved_checkpoints([Path(path).parent]):
        if other.name != Path(path).name:
            with contextlib.suppress(ValueError, OSError):
                read_resumable(str(other))
                return str(other)
    return None


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

    * ``torch.load(weights_only=True)`` accepts the few classes that mmengine writes (:func:`register_safe_globals`);
    * mmengine's checkpoint loaders read weights only, and report damaged files;
    * mmengine writes local files atomically (:class:`WholeFileBackend`);
    * ``mmseg::…`` and similar names find the installed host libraries, and install nothing.

    The tools and, before a run, this package's hooks call it: without it mmengine cannot resume from its own files with
    torch 2.6 and later. Importing lckd_mm or building a Distiller does not call it. A second call does nothing;
    :func:`uninstall` reverts it.
    """
    if _undo:
        return
    caches = mmengine.fileio.io.backend_instances, FileClient._instances
    tables = [registry_utils.backends, registry_utils.prefix_to_backends, CheckpointLoader._schemes, MODULE2PACKAGE]
    for table in (*caches, *tables, FileClient._backends, FileClient._prefix_to_backends):
        _undo.append(functools.partial(_refill, table, dict(table)))
    allowed = torch.serialization.get_safe_globals()
    _undo.append(functools.partial(torch.serialization.add_safe_globals, allowed))
    _undo.append(torch.serialization.clear_safe_globals)  # undone in reverse: first this, then the line above
    register_safe_globals()
    fork = getattr(mmengine.runner.checkpoint, '_safe_torch_load', None)
    if fork is not None:
        mmengine.runner.checkpoint._safe_torch_load = _fork_load
        _undo.append(lambda: setattr(mmengine.runner.checkpoint, '_safe_torch_load', fork))
    for cache in caches:
        cache.clear()
    register_backend('local', WholeFileBackend, force=True, prefixes='')
    FileClient.register_backend('disk', WholeFileDiskBackend, force=True)
    for prefix, load in CheckpointLoader._schemes.items():
        CheckpointLoader._schemes[prefix] = _safely(load)
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
