"""What the converters of data sets share: reading a folder or an archive, and writing a folder whole or not at all."""

from __future__ import annotations

import json
import lzma
import os
import secrets
import shutil
import socket
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lckd_mm.errors import one_line, sigterm_raises

_MARK = 'prepared.json'


def tracked(items: Iterable, title: str, progress: bool) -> Iterator:
    """The items, behind a progress bar on standard error."""
    if not progress:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=title, console=Console(stderr=True))


def _remove_stale(target: Path) -> None:
    """Remove temporary folders that killed runs left next to ``target``; those of live runs and other hosts stay."""
    prefix = f'.{target.name}.tmp-{socket.gethostname()}-'
    for folder in target.parent.iterdir():
        pid = folder.name.removeprefix(prefix).partition('-')[0]
        if not folder.name.startswith(prefix) or not pid.isdecimal():
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:  # alive, owned by another user
            continue


def write_folder(target: Path, write: Callable[[Path], None], written: Callable[[], bool]) -> None:
    """Let ``write`` fill a temporary folder next to ``target``, then rename it; an interruption leaves nothing.

    Args:
        target: absolute; a folder there is replaced.
        written: asked before the renaming, for the folder may have appeared in the meantime; True leaves it as it is,
            and it raises if the folder must not be replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target)
    # A sibling, so that the final rename stays on one file system; the name identifies the writing process.
    draft = target.with_name(f'.{target.name}.tmp-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}')
    old = draft.with_name(f'{draft.name}-old')
    with sigterm_raises():
        try:
            draft.mkdir()
            write(draft)
            if written():
                return
            if target.exists():
                target.rename(old)
            draft.rename(target)
        finally:
            if old.exists() and not target.exists():
                old.rename(target)
            for folder in (draft, old):
                shutil.rmtree(folder, ignore_errors=True)


def read_source(source: str | os.PathLike, who: str, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """The files of a folder, a tar or a zip file whose names end in one of the suffixes; names have / between parts.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: a file that is no archive, or is damaged.
    """
    source = Path(source)
    if source.is_dir():
        paths = (p for p in sorted(source.rglob('*')) if p.is_file() and p.name.endswith(suffixes))
        return {p.relative_to(source).as_posix(): p.read_bytes() for p in paths}
    if not source.exists():
        raise FileNotFoundError(
            f'{who}: no {source}; give the downloaded archive, or the folder that it was unpacked into'
        )
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                return {name: archive.read(name) for name in archive.namelist() if name.endswith(suffixes)}
        with tarfile.open(source) as archive:
            members = (m for m in archive if m.isfile() and m.name.endswith(suffixes))
            return {m.name: archive.extractfile(m).read() for m in members}
    # RuntimeError: a zip that needs a password, or has an unknown compression.
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
        raise ValueError(
            f'{who}: cannot read {source} as a tar or zip archive ({one_line(error)}); download it again'
        ) from error


def publish(who: str, root: str | os.PathLike, write: Callable[[Path], None]) -> Path:
    """Let ``write`` make the folder ``root``, unless an earlier call has made it whole.

    Raises:
        FileExistsError: ``root`` exists with other content, or has lost files.
    """
    root = Path(root)
    target = root.expanduser().resolve()

    def written() -> bool:
        if not os.path.lexists(target):
            return False
        try:
            files = json.loads((target / _MARK).read_text())[who]
        except (OSError, ValueError, KeyError, TypeError):
            raise FileExistsError(
                f'{who}: {target} exists and was not written by this tool, so it is left alone; '
                'choose another folder or move it away'
            ) from None
        lost = [name for name in files if not (target / name).is_file()]
        if lost:
            raise FileExistsError(
                f'{who}: {target} has lost {len(lost):,} of its files, such as {lost[0]}; remove it and begin anew'
            )
        return True

    def write_and_mark(folder: Path) -> None:
        write(folder)
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())
        (folder / _MARK).write_text(json.dumps({who: names}) + '\n')

    if written():
        print(f'{root} is complete; nothing to do')
    else:
        write_folder(target, write_and_mark, written)
    return root
