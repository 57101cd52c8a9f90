"""Digit scenes (:mod:`scenes.scene`) on disk, in the PASCAL VOC layout, and their objects in COCO's files."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from .coco import instances_of
from .folder import tracked, write_folder
from .scene import CLASSES, SPLITS, Scene, check_counts, compose_scene, voc_palette

_MARK = 'digit_scenes.json'
_FORMAT = 'lckd_mm digit scenes'
_VERSION = 2


def _scene_names(split: str, count: int) -> list[str]:
    return [f'{split}_{index:06d}' for index in range(count)]


def _annotation(name: str, scene: Scene) -> str:
    """The VOC XML of one scene."""
    images = 'scikit-learn load_digits and load_sample_images'
    source = dict(database='digit scenes', annotation='PASCAL VOC layout', image=images)
    height, width = scene.mask.shape
    size = dict(width=width, height=height, depth=3)
    root = _element('annotation', dict(folder='digit_scenes', filename=f'{name}.jpg', source=source, size=size))
    root.append(_element('segmented', 1))
    for label, box, truncated in zip(scene.labels, scene.boxes, scene.truncated):
        content = dict(name=CLASSES[label], pose='Unspecified', truncated=int(truncated), difficult=0)
        root.append(_element('object', content | dict(bndbox=dict(zip(('xmin', 'ymin', 'xmax', 'ymax'), box)))))
    ET.indent(root, '\t')
    return ET.tostring(root, encoding='unicode') + '\n'


def _element(tag: str, content: Any) -> ET.Element:
    element = ET.Element(tag)
    if isinstance(content, dict):
        element.extend(_element(key, value) for key, value in content.items())
    else:
        element.text = str(content)
    return element


def _write_scenes(folder: Path, parameters: dict[str, int], progress: bool) -> None:
    for part in ('JPEGImages', 'Annotations', 'SegmentationClass', 'ImageSets/Segmentation', 'ImageSets/Main', 'coco'):
        (folder / part).mkdir(parents=True)
    names = {split: _scene_names(split, parameters[split]) for split in SPLITS}
    jobs = [(split, index, name) for split in SPLITS for index, name in enumerate(names[split])]
    categories = [dict(id=label, name=CLASSES[label]) for label in range(1, len(CLASSES))]
    coco = {split: dict(images=[], annotations=[], categories=categories) for split in SPLITS}
    palette = [channel for colour in voc_palette() for channel in colour]
    for split, index, name in tracked(jobs, 'digit scenes', progress):
        scene = compose_scene(split, index, parameters['size'], parameters['seed'])
        Image.fromarray(scene.image).save(folder / 'JPEGImages' / f'{name}.jpg', quality=90)
        mask = Image.fromarray(scene.mask)
        mask.putpalette(palette)
        mask.save(folder / 'SegmentationClass' / f'{name}.png')
        (folder / 'Annotations' / f'{name}.xml').write_text(_annotation(name, scene))
        here, (height, width) = coco[split], scene.mask.shape
        here['images'].append(dict(id=index, file_name=f'{name}.jpg', height=height, width=width))
        for annotation in instances_of(scene.instances, scene.labels):
            here['annotations'].append(dict(id=len(here['annotations']) + 1, image_id=index, **annotation))
    for split in SPLITS:
        (folder / 'coco' / f'{split}.json').write_text(json.dumps(coco[split]))
    names['trainval'] = names['train'] + names['val']
    for task, split in product(('Segmentation', 'Main'), names):
        text = ''.join(f'{name}\n' for name in names[split])
        (folder / 'ImageSets' / task / f'{split}.txt').write_text(text)
    mark = {'format': _FORMAT, 'version': _VERSION, 'parameters': parameters}
    (folder / _MARK).write_text(json.dumps(mark, indent=2) + '\n')


def _written_mark(target: Path) -> dict | None:
    """The parameters that :func:`write_digit_scenes` recorded in a folder; None if it did not write the folder."""
    try:
        mark = json.loads((target / _MARK).read_text())
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and mark.get('format') == _FORMAT else None


def _missing_files(target: Path, parameters: dict[str, int]) -> int:
    names = [name for split in SPLITS for name in _scene_names(split, parameters[split])]
    parts = {'JPEGImages': '.jpg', 'Annotations': '.xml', 'SegmentationClass': '.png'}
    wanted = [target / part / f'{name}{suffix}' for part, suffix in parts.items() for name in names]
    wanted += [target / 'ImageSets' / t / f'{s}.txt' for t in ('Segmentation', 'Main') for s in (*SPLITS, 'trainval')]
    wanted += [target / 'coco' / f'{split}.json' for split in SPLITS]
    return sum(not path.is_file() for path in wanted)


def _check_existing(target: Path, parameters: dict[str, int], force: bool) -> bool:
    """Whether ``target`` already has the requested scenes; raises if it has other content that must not be touched."""
    if not os.path.lexists(target):
        return False
    mark = _written_mark(target)
    if mark is None:
        raise FileExistsError(
            f'digit scenes: {target} exists and was not written by this tool, so it is left alone; '
            'choose another folder or move it away'
        )
    # Scenes of an older version with the same parameters are made anew: no file of them is a user's.
    if force or (mark.get('version') in range(_VERSION) and mark.get('parameters') == parameters):
        return False
    if mark.get('version') != _VERSION or mark.get('parameters') != parameters:
        has = f'version {mark.get("version")} with {_listed(mark.get("parameters"))}'
        wrong = f'holds {has}, asked for version {_VERSION} with {_listed(parameters)}'
    else:
        missing = _missing_files(target, parameters)
        wrong = f'has lost {missing} of its files' if missing else ''
    if wrong:
        way = 'choose another folder, or replace it with force=True (--force)'
        raise FileExistsError(f'digit scenes: {target} {wrong}; {way}')
    return True


def _listed(parameters) -> str:
    return ', '.join(f'{k}={v}' for k, v in parameters.items()) if isinstance(parameters, dict) else str(parameters)


def write_digit_scenes(
    root: str | os.PathLike,
    train: int = 800,
    val: int = 200,
    size: int = 96,
    seed: int = 0,
    progress: bool = True,
    force: bool = False,
) -> Path:
    """Write the digit scenes into ``root`` in the layout of PASCAL VOC, all of them or nothing.

    Beside it ``coco/SPLIT.json`` has the boxes and masks of single digits for mmdetection's ``CocoDataset``.

    Real handwriting in colour over real photographs, with masks for segmentation and boxes for detection. Training
    and validation share no scan and no pixel of a photograph. Scene ``i`` of a split depends only on ``size`` and
    ``seed``, not on the number of scenes, and two runs write the same bytes.

    Args:
        root: folder to create; nothing is written if it already has exactly these scenes.
        train: number of training scenes.
        val: number of validation scenes.
        size: side of the square pictures in pixels, at least 32.
        seed: at least 0.
        progress: show a progress bar, and print a message if there was nothing to do.
        force: replace a folder, but only one that an earlier call wrote.
    Returns:
        ``root`` as a path.
    Raises:
        ValueError: a parameter out of range, or no scenes requested.
        FileExistsError: ``root`` exists with other content.
    Source: ``load_digits`` and ``load_sample_images`` of scikit-learn.
    """
    check_counts(size=size, seed=seed, train=train, val=val)
    if train + val == 0:
        raise ValueError('digit scenes: train and val are both 0, so there is nothing to write; ask for at least one')
    parameters = dict(train=int(train), val=int(val), size=int(size), seed=int(seed))
    root = Path(root)
    target = root.expanduser().resolve()
    if _check_existing(target, parameters, force):
        if progress:
            print(f'{root} already holds these digit scenes ({_listed(parameters)}); nothing to do')
        return root

    write_folder(
        target,
        lambda draft: _write_scenes(draft, parameters, progress),
        lambda: _check_existing(target, parameters, force),
    )
    return root
