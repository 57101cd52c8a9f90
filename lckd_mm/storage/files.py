"""Files on disk: written whole or not at all, read without running code, and the newest good one found."""

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
#: What a checkpoint must hold to be gone on from, as mmengine's Runner reads it.
_RESUMABLE = ('meta', 'state_dict', 'message_hub')
_trusted: set[str] = set()


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file so that at any moment, and after a crash, its name holds the old content or the new, never a part.

    The data goes to a temporary file beside it (``.<name>.<host>.<process>.partial``), to the disk, and then takes
    the name. A device or a pipe is written to directly.

    Raises:
        WriteError: the disk is full, a limit or a permission stands in the way; the temporary file is removed.
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
    """``torch.save``, by :func:`write_whole`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getvalue())


def _sync_folder(folder: str) -> None:
    """Have the new name itself reach the disk, where the file system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_partials(folder: str | Path) -> list[str]:
    """Remove the temporary files that killed processes left in a folder, and return their names.

    One of a process that still runs on this machine stays, and one of another machine until it is a day old.
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
    """mmengine's local files, written by :func:`write_whole`; takes LocalBackend's place for paths without a scheme."""


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


def trust(source: str | Path) -> None:
    """Let this one file be read with pickle's full powers: it can then run any code. The only way to allow that."""
    _trusted.add(str(source))


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    load = torch.load

    def load_weights(*args: Any, **kwargs: Any) -> Any:
        # Said explicitly, so that TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD does not take it back; torch.hub says the opposite.
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
    """One of mmengine's loaders made safe: weights only, checked for damage, one sentence where it refuses."""

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
                raise  # the disk or the network says it best
            # torch seeks to before the beginning of a file that is cut short.
            raise ValueError(f'cannot read the checkpoint {str(filename)!r}: it is cut short') from error
        except Exception as error:  # which one a damaged file raises in torch's unpickler is not to be foreseen
            raise ValueError(f'cannot read the checkpoint {str(filename)!r}: {_reason(error)}') from error
        meta = loaded.get('meta') if isinstance(loaded, dict) else None
        if isinstance(meta, dict):
            # Runner.resume would run this text as Python. mmengine itself writes `cfg`, which nothing runs.
            meta.pop('config', None)
        return loaded

    return load_safely


def _reason(error: Exception) -> str:
    # torch's own first line advises weights_only=False, which is the one thing not to do.
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
    """Why a local file is no whole checkpoint, as far as that shows from outside the pickle; None where it may be.

    torch itself does not compare the checksums that it writes.
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
        # RuntimeError: encrypted, or compressed in a way that zipfile does not know.
        return f'it is cut short or damaged ({error})'
    return f'it is damaged: the checksum of {broken!r} is wrong' if broken else None


def read_checkpoint(source: str, who: str) -> dict[str, Any]:
    """A checkpoint file as it stands, on the CPU, read with ``weights_only`` whatever the environment says.

    Args:
        source: a path, or an address that mmengine can fetch (``https://``, ``torchvision://``, ``open-mmlab://``).
    Raises:
        FileNotFoundError: no such file. ValueError: no checkpoint, a damaged one, or one that would run code on
            loading.
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
    """A checkpoint that a run can go on from; raises as :func:`read_checkpoint` does, and where parts are missing."""
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
    """The checkpoint from which a run in ``work_dir`` goes on; None where it has saved none yet.

    First what ``last_checkpoint`` names, then ``iter_*.pth`` and ``epoch_*.pth`` from the newest; each is read whole,
    and one that is damaged is passed over and left where it is.

    Args:
        folders: where else checkpoints are kept. names: further templates of their names, with ``{}`` for the number.
    Returns:
        its path, its content, and a sentence for each one that was passed over.
    Raises:
        ValueError: there are checkpoints, and none is good. FileNotFoundError: ``last_checkpoint`` is there, and none.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    named = pointer.read_bytes().decode(errors='replace').strip('\0 \n\r\t') if pointer.is_file() else ''
    candidates = []
    if named:
        # A relative path is from where training was started, which need not be here.
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
    """The runs' checkpoints in some folders, the newest first: by the time of writing, then by their number."""
    patterns = [re.escape(name).replace(r'\{\}', r'(\d+)') for name in ('iter_{}.pth', 'epoch_{}.pth', *names)]
    found = {}
    for folder in dict.fromkeys(map(str, folders)):
        for path in Path(folder).iterdir() if Path(folder).is_dir() else ():
            number = next((int(m[1]) for m in (re.fullmatch(p, path.name) for p in patterns) if m), None)
            if number is not None:
                found[path] = (path.stat().st_mtime_ns, number)
    return sorted(found, key=found.get, reverse=True)


def good_sibling(path: str | Path) -> str | None:
    """The newest good checkpoint beside a broken one, for the message about it."""
    for other in saved_checkpoints([Path(path).parent]):
        if other.name != Path(path).name:
            with contextlib.suppress(ValueError, OSError):
                read_resumable(str(other))
                return str(other)
    return None


def _fork_load(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    """Torch's own reading, in place of the maintained fork's.

    The fork lets any getattr through, forgets the classes allowed here after each file, and opens what it cannot read
    so with pickle's full powers.
    """
    return torch.load(file, map_location=map_location, weights_only=weights_only)


# Under a module's own name mmengine finds the package that is installed, upstream's or a fork's; under the one in its
# own table it would pip-install upstream's. The metadata of an editable install name a folder that does not exist; a
# module inside leads to the right one.
_PACKAGES = {'mmpretrain': 'mmpretrain', 'mmseg': 'mmseg', 'mmdet': 'mmdet', 'lckd_mm': 'lckd_mm.registry'}
_undo: list[Callable[[], None]] = []


def install() -> None:
    """Change mmengine and torch, in this process, where they read and write files:

    * ``torch.load(weights_only=True)`` may read the few classes that mmengine writes (:func:`register_safe_globals`);
    * mmengine's loaders of checkpoints read weights only, and name a damaged file;
    * its local files are written whole or not at all (:class:`WholeFileBackend`);
    * ``mmseg::…`` and the like find the installed family of host libraries, and install nothing.

    The tools call it, and so do this package's hooks before a run: without it mmengine cannot resume from its own files
    with torch 2.6 and later. Importing lckd_mm or building a Distiller does not. A second call changes nothing;
    :func:`uninstall` takes it back.
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
    """Take :func:`install` back."""
    while _undo:
        _undo.pop()()


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """:func:`install` for the length of a ``with``."""
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
