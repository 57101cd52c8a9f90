"""BCCD, blood cells under the microscope, in the layout of PASCAL VOC, for mmdetection's ``XMLDataset``."""

from __future__ import annotations

import hashlib
import logging
import os
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from .folder import publish, read_source, tracked

IMAGES = dict(train=205, val=87, test=72)
#: Those that have an area; two of the published RBC have none.
BOXES = dict(RBC=4153, WBC=372, Platelets=361)
#: Of the pictures' bytes and the boxes kept, in the order of train, val and test.
SHA256 = 'cd27c4acecf3501f15039d635f8840feaa1c571f4d7aabf97d57f132a391695e'

_logger = logging.getLogger(__name__)


def _cleaned(content: bytes, name: str) -> ET.Element:
    """The annotation without boxes of no area, and without the path of the file on its author's disk."""
    try:
        root = ET.fromstring(content)
    except ET.ParseError as error:
        raise ValueError(f'BCCD: cannot read {name} as XML ({error}); download the data again') from error
    for path in root.findall('path'):
        root.remove(path)
    for thing in root.findall('object'):
        box = [int(thing.findtext(f'bndbox/{side}', '0')) for side in ('xmin', 'ymin', 'xmax', 'ymax')]
        if box[2] <= box[0] or box[3] <= box[1]:
            root.remove(thing)
    return root


def convert_bccd(source: str | os.PathLike, root: str | os.PathLike, progress: bool = True) -> Path:
    """Write BCCD's pictures, annotations and splits into ``root``, all of them or nothing.

    ``JPEGImages/NAME.jpg`` as they are, ``Annotations/NAME.xml`` without the boxes that have no area, and
    ``ImageSets/Main/train.txt``, ``val.txt`` and ``test.txt``, the splits of the authors.

    Args:
        source: folder or archive that holds ``BCCD/Annotations``, ``BCCD/ImageSets/Main`` and ``BCCD/JPEGImages``, as
            github.com/Shenggan/BCCD_Dataset does.
        root: folder to make; nothing is done if an earlier call wrote it whole.
    Returns:
        ``root`` as a path.
    Raises:
        FileNotFoundError: there is no source, or it lacks files.
        ValueError: a file cannot be read, or there are more or fewer images or boxes than the data set has.
        FileExistsError: ``root`` exists with other content.
    Source: Shenggan Cheng, BCCD Dataset, MIT licence.
    """

    def write(folder: Path) -> None:
        # A repository has other folders of the same names above BCCD's.
        everything = read_source(source, 'BCCD', ('.jpg', '.xml', '.txt'))
        inner = {f'/{path}'.rpartition('/BCCD/')[2]: p for path, p in everything.items() if '/BCCD/' in f'/{path}'}
        files = inner or everything
        splits = {}
        for split in IMAGES:
            if f'ImageSets/Main/{split}.txt' not in files:
                raise FileNotFoundError(
                    f'BCCD: no ImageSets/Main/{split}.txt in {source}; give the folder or archive of BCCD_Dataset'
                )
            splits[split] = files[f'ImageSets/Main/{split}.txt'].decode().split()
        names = [name for split in splits.values() for name in split]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise ValueError(f'BCCD: {twice[0]} is listed twice in ImageSets/Main of {source}; download it again')
        wanted = [part.format(n) for n in names for part in ('JPEGImages/{}.jpg', 'Annotations/{}.xml')]
        missing = [name for name in wanted if name not in files]
        if missing:
            raise FileNotFoundError(
                f'BCCD: {source} lacks {len(missing)} files, such as {missing[0]}; download it again'
            )
        for part in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
            (folder / part).mkdir(parents=True)
        boxes, digest = Counter(), hashlib.sha256()
        for name in tracked(names, 'BCCD', progress):
            picture, path = files[f'JPEGImages/{name}.jpg'], f'Annotations/{name}.xml'
            annotation = _cleaned(files[path], path)
            digest.update(picture)
            for thing in annotation.findall('object'):
                boxes[thing.findtext('name')] += 1
                digest.update(' '.join(''.join(thing.itertext()).split()).encode())
            (folder / 'JPEGImages' / f'{name}.jpg').write_bytes(picture)
            (folder / path).write_bytes(ET.tostring(annotation) + b'\n')
        found = {split: len(names) for split, names in splits.items()}
        if (found, dict(boxes)) != (IMAGES, BOXES):
            raise ValueError(
                f'BCCD: {source} has {_listed(found)} images and {_listed(boxes)} boxes, expected {_listed(IMAGES)} '
                f'and {_listed(BOXES)}; download the revision that configs/bccd/README.md names'
            )
        if digest.hexdigest() != SHA256:
            _logger.warning('BCCD: the files in %s differ from those that the figures here are of', source)
        for split, listed in splits.items():
            (folder / f'ImageSets/Main/{split}.txt').write_text(''.join(f'{name}\n' for name in listed))

    return publish('BCCD', root, write)


def _listed(counts: dict[str, int]) -> str:
    return ', '.join(f'{count:,} {name}' for name, count in sorted(counts.items()))
