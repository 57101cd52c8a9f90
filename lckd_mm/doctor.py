"""Reports what is installed, whether it works, and how to fix what does not: python -m lckd_mm.doctor."""

import argparse
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from .errors import REPOSITORY, one_line, tool_command

#: Distribution to version, for the two families of host libraries on which the test suite passes.
FAMILIES = {
    'upstream': dict(mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0', mmsegmentation='1.2.2', mmpretrain='1.2.0'),
    'onedl': {
        'onedl-mmengine': '0.10.12',
        'onedl-mmcv': '2.3.6',
        'onedl-mmdetection': '3.5.1',
        'onedl-mmsegmentation': '1.4.2',
        'onedl-mmpretrain': '1.3.6',
    },
}
TORCH = dict(torch='2.10.0', torchvision='0.25.0')
_INSTALL = {'upstream': 'make install', 'onedl': 'make install FAMILY=onedl'}
_PREPARE = tool_command('prepare_data')

# Where the configs expect their data: (name, a file or folder that must exist, how to get it).
_DATA = (
    ('digit scenes', 'data/digit_scenes/ImageSets', f'{_PREPARE} digit-scenes'),
    ('BCCD', 'data/bccd/ImageSets', f'{_PREPARE} bccd SOURCE'),
    ('nuclei', 'data/nuclei/train.txt', f'{_PREPARE} nuclei SOURCE'),
    ('Fashion-MNIST', 'data/fashion_mnist/train-images-idx3-ubyte', f'{_PREPARE} fashion-mnist SOURCE'),
    ('VOC2012', 'data/VOCdevkit/VOC2012/ImageSets', 'unpack its trainval archive to data/'),
    (
        'SBD, converted',
        'data/VOCdevkit/VOC2012/SegmentationClassAug',
        f'{_PREPARE} sbd SBD_ROOT data/VOCdevkit/VOC2012',
    ),
    ('VOC2007', 'data/VOCdevkit/VOC2007/ImageSets', 'unpack its trainval and test archives to data/'),
    ('CIFAR-100', 'data/cifar100/cifar-100-python', 'the first training fetches it, or unpack its archive there'),
    ('ImageNet', 'data/imagenet/train', 'put its train and val folders, with one folder per class, in data/imagenet'),
)


class Finding(NamedTuple):
    """One line of the report; ``state`` is 'ok', 'note' (training works without it) or 'wrong'."""

    what: str
    state: str
    says: str
    cure: str = ''


def examine(root: str | os.PathLike = '.') -> Iterator[Finding]:
    """Run all checks in turn; ``root`` is the folder that holds ``data/``."""
    family = max(FAMILIES, key=lambda name: len(_installed(name)))
    for name, tested in (FAMILIES[family] | TORCH).items():
        version = _version(name)
        if version is None:
            yield Finding(name, 'wrong', 'not installed', _install(name, tested, family))
        elif version.partition('+')[0] == tested:
            yield Finding(name, 'ok', version)
        else:
            yield Finding(name, 'note', f'{version} (tested with {tested})')
    mixed = [name for other in FAMILIES if other != family for name in _installed(other)]
    if mixed:
        says = f'{", ".join(mixed)} of the other family: both families use the same import names'
        new = f'remove .venv, then {_INSTALL[family]}' if REPOSITORY else 'install one of them into a new environment'
        yield Finding('host libraries', 'wrong', says, new)
    for what, check in (('environment', _environment), ('operators', _operators), ('lckd_mm', _package)):
        try:
            yield from check()
        except Exception as error:  # a broken installation may raise anything, and the report must go on
            kind = 'mmcv' if what == 'operators' else 'mmengine'
            cause = next(item for item in FAMILIES[family].items() if item[0].endswith(kind))
            yield Finding(what, 'wrong', one_line(error), _install(*cause, family))
    for what, path, cure in _DATA:
        found = (Path(root) / path).exists()
        yield Finding(what, 'ok', path) if found else Finding(what, 'note', f'not at {path}', cure)


def _install(distribution: str, version: str, family: str) -> str:
    """The command that installs a missing distribution, or one that does not work."""
    if REPOSITORY:
        return _INSTALL[family]
    if distribution.endswith('mmcv'):  # compiled against the torch that is there
        return f'after torch: pip install --force-reinstall --no-deps --no-build-isolation {distribution}=={version}'
    if family == 'upstream' and distribution not in TORCH:
        return "pip install 'lckd_mm[hosts]'"
    return f'pip install {distribution}=={version}'


def _installed(family: str) -> list[str]:
    return [name for name in FAMILIES[family] if _version(name) is not None]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _environment() -> Iterator[Finding]:
    from mmengine.utils.dl_utils import collect_env

    for name, value in collect_env().items():
        if name in ('Python', 'CUDA available', 'CUDA_HOME', 'NVCC', 'GCC', 'OpenCV') or name.startswith('GPU'):
            yield Finding(name, 'ok', str(value))


def nms_of_two_boxes() -> list[int]:
    """The boxes that mmcv's nms keeps of two overlapping ones, the second scoring higher: ``[1]`` if its ops work.

    An mmcv without ops, or built for another torch, still imports; only calling an op tells.
    """
    import torch
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    return nms(boxes, torch.tensor([0.5, 0.9]), iou_threshold=0.5)[1].tolist()


def _operators() -> Iterator[Finding]:
    import torch
    from torchvision.ops import nms

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # fails if torchvision was built for another torch
    kept = nms_of_two_boxes()
    if kept != [1]:
        raise RuntimeError(f"mmcv's nms of two boxes kept {kept}, expected [1]")
    yield Finding('operators', 'ok', 'nms of torchvision and mmcv work')


def _package() -> Iterator[Finding]:
    from . import __version__
    from .registry import HOOKS, MODELS

    MODELS.import_from_location()
    HOOKS.import_from_location()
    counts = f'{len(MODELS.module_dict)} models and losses, {len(HOOKS.module_dict)} hooks'
    yield Finding('lckd_mm', 'ok', f'{__version__} in {Path(__file__).parent}: {counts}')


def main(argv: list[str] | None = None) -> int:
    """Print the report; exit status 1 if anything that training needs is wrong."""
    parser = argparse.ArgumentParser(prog='python -m lckd_mm.doctor', description=__doc__)
    parser.add_argument('--root', default='.', help='the folder that holds data/ (default: this folder)')
    args = parser.parse_args(argv)
    wrong = 0
    for finding in examine(args.root):
        wrong += finding.state == 'wrong'
        mark = {'ok': 'ok   ', 'note': '-    ', 'wrong': 'WRONG'}[finding.state]
        print(f'{mark} {finding.what:<15} {finding.says}' + (f'; {finding.cure}' if finding.cure else ''))
    print(f'{wrong} wrong' if wrong else 'all that training needs is there')
    return min(wrong, 1)


if __name__ == '__main__':
    sys.exit(main())
