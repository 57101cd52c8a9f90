"""TensorFolder: tensors in a folder, each set of them in a file with a checksum that cannot run code."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import near, write_whole

_SIZE = 32


def digest(parts: Iterable[str | Tensor], key: str = '') -> str:
    """BLAKE2b of texts and of tensors' bits, types and shapes, in 32 hexadecimal digits; other for each ``key``."""
    found = hashlib.blake2b(key.encode(), digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f'{part.dtype} {tuple(part.shape)} '.encode())
            # numpy has no bfloat16.
            found.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        else:
            found.update(f'{part} '.encode())
    return found.hexdigest()


class TensorFolder:
    """Sets of tensors by key, a file each, and a manifest that is written last.

    A file holds the BLAKE2b of its content, 32 bytes, and then the content in the format of safetensors. Each is
    written atomically, so that several processes may write the same.

    Args:
        folder: where; it is made when something is written. who: begins the errors.
    Raises:
        ModuleNotFoundError: the package safetensors is not installed.
    """

    def __init__(self, folder: str, who: str):
        try:
            import safetensors.torch
        except ImportError:
            raise ModuleNotFoundError(
                f'{who}: stored outputs need the package safetensors; install it, or remove stored', name='safetensors'
            ) from None
        self.folder, self.who, self._format = Path(folder).expanduser(), who, safetensors.torch

    def __str__(self) -> str:
        return repr(near(self.folder))

    @property
    def manifest(self) -> Path:
        return self.folder / 'manifest.json'

    def description(self) -> dict[str, Any] | None:
        """What the manifest says; None before it is written. ValueError for a damaged one."""
        if not self.manifest.is_file():
            return None
        try:
            found = json.loads(self.manifest.read_text())
            if not isinstance(found, dict):
                raise ValueError(f'it holds a {type(found).__name__}')
        except ValueError as error:
            raise ValueError(
                f'{self.who}: {near(self.manifest)!r} cannot be read ({error}); remove it, and the next run goes '
                'through all images and writes it again'
            ) from error
        return found

    def finish(self, description: Mapping[str, Any]) -> None:
        write_whole(self.manifest, json.dumps(description, indent=2).encode())

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f'{key[2:]}.stored'

    def has(self, key: str) -> bool:
        return self.path(key).is_file()

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> int:
        """Write a set of tensors; returns the bytes of the file."""
        content = self._format.save({name: x.cpu().contiguous() for name, x in tensors.items()})
        content = hashlib.blake2b(content, digest_size=_SIZE).digest() + content
        write_whole(self.path(key), content)
        return len(content)

    def read(self, key: str) -> dict[str, Tensor] | None:
        """A set of tensors, on the CPU; None if there is none. ValueError if the checksum is wrong."""
        try:
            content = self.path(key).read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.blake2b(content[_SIZE:], digest_size=_SIZE).digest() != content[:_SIZE]:
            raise ValueError(
                f'{self.who}: {near(self.path(key))!r} is damaged, its checksum is wrong; remove it and '
                f'{near(self.manifest)!r}, and the next run writes both again'
            )
        return self._format.load(content[_SIZE:])
