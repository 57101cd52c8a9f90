"""Fashion-MNIST's four files, unzipped, as mmpretrain's ``FashionMNIST`` reads them."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path

from lckd_mm.errors import one_line

from .folder import publish, read_source

#: SHA-256 of what is in the files (packed anew they differ), and the numbers in its head.
FILES = {
    'train-images-idx3-ubyte': ('c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888', (60000, 28, 28)),
    'train-labels-idx1-ubyte': ('bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9', (60000,)),
    't10k-images-idx3-ubyte': ('5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b', (10000, 28, 28)),
    't10k-labels-idx1-ubyte': ('0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34', (10000,)),
}


def convert_fashion_mnist(source: str | os.PathLike, root: str | os.PathLike) -> Path:
    """Unzip the four files of Fashion-MNIST into ``root``, all of them or nothing.

    Args:
        source: folder or archive with ``train-images-idx3-ubyte.gz`` and so on, as
            github.com/zalandoresearch/fashion-mnist and Debian's ``dataset-fashion-mnist`` have them.
        root: folder to make; nothing is done if an earlier call wrote it whole.
    Returns:
        ``root`` as a path.
    Raises:
        FileNotFoundError: there is no source, or it lacks a file.
        ValueError: a file is damaged, or has other counts.
        FileExistsError: ``root`` exists with other content.
    Source: Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv 1708.07747; MIT licence.
    """

    def write(folder: Path) -> None:
        found = read_source(source, 'Fashion-MNIST', ('.gz',))
        files = {path.split('/')[-1]: content for path, content in found.items()}
        for name, (digest, shape) in FILES.items():
            if f'{name}.gz' not in files:
                raise FileNotFoundError(f'Fashion-MNIST: no {name}.gz in {source}; download the four files again')
            try:
                content = gzip.decompress(files[f'{name}.gz'])
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(
                    f'Fashion-MNIST: cannot unzip {name}.gz ({one_line(error)}); download it again'
                ) from error
            head = b''.join(n.to_bytes(4, 'big') for n in (0x800 + len(shape), *shape))
            if not content.startswith(head) or hashlib.sha256(content).hexdigest() != digest:
                raise ValueError(
                    f'Fashion-MNIST: what is in {name}.gz of {source} is not the published file of shape {shape}, '
                    f'SHA-256 {digest[:8]}…; download it again'
                )
            (folder / name).write_bytes(content)

    return publish('Fashion-MNIST', root, write)
