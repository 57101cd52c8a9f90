"""Converts SBD's masks (Hariharan et al. 2011) to PNG files next to PASCAL VOC's, as mmsegmentation reads them."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lckd_mm.errors import sigterm_raises

from .folder import tracked
from .scene import VOID, voc_palette

EXPECTED_FOUND = 11355
EXPECTED_ADDED = 9118

_logger = logging.getLogger(__name__)
_MAX_LABEL = 20


@dataclass(frozen=True)
class SBDConversion:
    """What a conversion found and wrote.

    found: SBD masks in the source; 11,355 in a complete SBD.
    added: ids written to ``aug.txt``; 9,118 in a complete SBD, 10,582 with VOC's own 1,464 training pictures.
    from_voc: VOC's own masks in ``SegmentationClassAug``.
    without_mask: ids that SBD lists but has no mask for; left out of ``aug.txt``.
    without_picture: ids with a mask but no picture in ``JPEGImages``; left out of ``aug.txt``.
    """

    found: int
    added: int
    from_voc: int
    without_mask: int
    without_picture: int

    @property
    def complete(self) -> bool:
        return self.found == EXPECTED_FOUND and self.added == EXPECTED_ADDED

    def __str__(self) -> str:
        return (
            f'SBD: found {self.found:,} of {EXPECTED_FOUND:,} masks and added {self.added:,} of {EXPECTED_ADDED:,} '
            f"training pictures to aug.txt; {self.from_voc:,} masks are VOC's own; left out {self.without_mask:,} "
            f'listed pictures without a mask and {self.without_picture:,} that are not in JPEGImages'
        )


def _find_cls(sbd_root: Path) -> Path:
    """The folder of SBD's class masks."""
    if not sbd_root.is_dir():
        raise FileNotFoundError(f'SBD: no folder {sbd_root}; give the folder that SBD was unpacked into')
    places = ('benchmark_RELEASE/dataset/cls', 'dataset/cls', 'cls')
    for folder in (sbd_root / place for place in places):
        if any(folder.glob('*.mat')):
            return folder
    raise FileNotFoundError(
        f'SBD: no .mat file in {", ".join(places)} of {sbd_root}; give the folder that SBD was unpacked into'
    )


def read_sbd_mask(path: str | os.PathLike) -> np.ndarray:
    """The class mask of one of SBD's ``.mat`` files.

    Returns:
        ``(H, W)`` uint8, 0 background, 1 to 20 VOC's classes, 255 ignored.
    Raises:
        ValueError: the file has no ``GTcls`` struct with a two-dimensional ``Segmentation``, or has other labels.
    """
    from scipy.io import loadmat

    with open(path, 'rb') as file:
        # A damaged file makes loadmat raise almost anything (zlib.error, TypeError, KeyError, ...).
        try:
            mask = np.asarray(loadmat(file, variable_names=['GTcls'])['GTcls']['Segmentation'].item())
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(
                f'SBD: cannot read {path} as a .mat file with GTcls.Segmentation ({type(error).__name__}: {error}); '
                'unpack the archive again'
            ) from error
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in 'uif':
        raise ValueError(
            f'SBD: GTcls.Segmentation in {path} is {mask.dtype} of shape {mask.shape}, '
            'expected numbers of shape (H, W); unpack the archive again'
        )
    wrong = np.setdiff1d(mask, [*range(_MAX_LABEL + 1), VOID])
    if wrong.size:
        raise ValueError(
            f'SBD: {path} holds the label {wrong[-1]}, expected 0 to {_MAX_LABEL} or {VOID}; '
            'use the files in cls, not those in inst'
        )
    return mask.astype(np.uint8)


def _replace_atomically(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file in the same folder, then rename it to the target."""
    draft = target.with_name(f'.{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}')
    try:
        write(draft)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _write_mask(mask: np.ndarray, target: Path) -> None:
    picture = Image.fromarray(mask)
    picture.putpalette([channel for colour in voc_palette() for channel in colour])
    _replace_atomically(target, lambda draft: picture.save(draft, format='PNG'))


def _take_over(source: Path, target: Path) -> None:
    """Put one of VOC's own masks at ``target``, as a hard link if the file system supports it."""
    # Renaming one hard link over another of the same file does nothing, and would leave the temporary name behind.
    if target.exists() and os.path.samefile(source, target):
        return
    with Image.open(source) as picture:
        if picture.mode not in ('P', 'L'):
            raise ValueError(
                f'SBD: VOC mask {source} has mode {picture.mode}, expected palette indices (mode P); '
                'unpack SegmentationClass again'
            )

    def write(draft: Path) -> None:
        try:
            os.link(source.resolve(), draft)
        except OSError:
            # Copy the bytes instead of re-encoding the picture, to keep the palette and every index.
            draft.write_bytes(source.read_bytes())

    _replace_atomically(target, write)


def _read_ids(path: Path) -> set[str]:
    return set(path.read_text().split())


def convert_sbd(sbd_root: str | os.PathLike, voc_root: str | os.PathLike, progress: bool = True) -> SBDConversion:
    """Write the available part of SBD into a VOC 2012 folder, for mmsegmentation's ``pascal_voc12_aug.py``.

    Writes ``SegmentationClassAug/ID.png`` for every mask of SBD and every mask of VOC, VOC's finer one where both
    exist, and ``ImageSets/Segmentation/aug.txt`` with the ids that SBD adds to VOC's train and val. That file is
    written last. Each file is written atomically, and a second run changes nothing.

    Args:
        sbd_root: folder that SBD was unpacked into, holding ``benchmark_RELEASE/dataset/cls``, ``dataset/cls`` or
            ``cls``.
        voc_root: the folder ``VOC2012``, with ``SegmentationClass`` and ``ImageSets/Segmentation``.
        progress: show a progress bar.
    Returns:
        What was found and written; also logged, as a warning if SBD is incomplete.
    Raises:
        FileNotFoundError: a folder, the masks or VOC's lists do not exist.
        ValueError: a mask cannot be read or has labels that are not VOC's.
    Source: B. Hariharan et al., Semantic contours from inverse detectors, ICCV 2011.
    Deviation: mmsegmentation's converter stops unless SBD is complete, keeps SBD's mask where VOC has a finer one, and
    lists pictures without a mask.
    """
    sbd_root, voc_root = Path(sbd_root), Path(voc_root)
    cls = _find_cls(sbd_root)
    masks, lists = voc_root / 'SegmentationClass', voc_root / 'ImageSets' / 'Segmentation'
    for needed in (masks, lists / 'train.txt', lists / 'val.txt'):
        if not needed.exists():
            raise FileNotFoundError(f'SBD: no {needed}; give the folder VOC2012 of VOCdevkit as VOC_ROOT')

    mats = {path.stem: path for path in sorted(cls.glob('*.mat'))}
    voc = {path.stem: path for path in sorted(masks.glob('*.png'))}
    aug = voc_root / 'SegmentationClassAug'
    aug.mkdir(exist_ok=True)
    with sigterm_raises():
        for name, path in tracked(voc.items(), "VOC's masks", progress):
            _take_over(path, aug / f'{name}.png')
        own = [(name, path) for name, path in mats.items() if name not in voc]
        for name, path in tracked(own, "SBD's masks", progress):
            _write_mask(read_sbd_mask(path), aug / f'{name}.png')

        listed = set().union(
            *(_read_ids(path) for s in ('train', 'val') if (path := cls.parent / f'{s}.txt').is_file())
        )
        extra = (listed or set(mats)) - _read_ids(lists / 'train.txt') - _read_ids(lists / 'val.txt')
        with_mask = extra & set(mats)
        added = with_mask
        # Without JPEGImages the pictures are elsewhere, where the config says; they cannot be checked here.
        if (voc_root / 'JPEGImages').is_dir():
            added = with_mask & {path.stem for path in (voc_root / 'JPEGImages').glob('*.jpg')}
        text = ''.join(f'{name}\n' for name in sorted(added))
        _replace_atomically(lists / 'aug.txt', lambda draft: draft.write_text(text))

    done = SBDConversion(len(mats), len(added), len(voc), len(extra - with_mask), len(with_mask - added))
    _logger.log(logging.INFO if done.complete else logging.WARNING, '%s', done)
    return done
