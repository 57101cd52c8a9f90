"""Reports what is installed, whether it works, and how to fix what does not: python -m lckd_mm.doctor."""

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

#: Import name to (distribution, version), for the two families of host libraries on which the test suite passes.
FAMILIES = {
    'upstream': {
        'mmengine': ('mmengine', '0.10.7'),
        'mmcv': ('mmcv', '2.1.0'),
        'mmdet': ('mmdet', '3.3.0'),
        'mmseg': ('mmsegmentation', '1.2.2'),
        'mmpretrain': ('mmpretrain', '1.2.0'),
    },
    'onedl': {
        'mmengine': ('onedl-mmengine', '0.10.12'),
        'mmcv': ('onedl-mmcv', '2.3.6'),
        'mmdet': ('onedl-mmdetection', '3.5.1'),
        'mmseg': ('onedl-mmsegmentation', '1.4.2'),
        'mmpretrain': ('onedl-mmpretrain', '1.3.6'),
    },
}
TORCH = {'torch': '2.10.0', 'torchvision': '0.25.0'}
_INSTALL = {'upstream': 'make install', 'onedl': 'make install FAMILY=onedl'}

# Where the configs expect their data: (name, a file or folder that must exist, how to get it).
_DATA = (
    ('digit scenes', 'data/digit_scenes/ImageSets', 'python tools/prepare_data.py digit-scenes'),
    ('VOC2012', 'data/VOCdevkit/VOC2012/ImageSets', 'unpack its trainval archive to data/'),
    (
        'SBD, converted',
        'data/VOCdevkit/VOC2012/SegmentationClassAug',
        'python tools/prepare_data.py sbd SBD_ROOT data/VOCdevkit/VOC2012',
    ),
    ('VOC2007', 'data/VOCdevkit/VOC2007/ImageSets', 'unpack its trainval and test archives to data/'),
    ('CIFAR-100', 'data/cifar100/cifar-100-python', 'fetched by the first training, or unpack its archive there'),
    ('ImageNet', 'data/imagenet/train', 'put its train and val folders, a folder a class, under data/imagenet'),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``state`` is 'ok', 'note' (training works without it) or 'wrong'."""

    what: str
    state: str
    says: str
    cure: str = ''


def examine(root: str | os.PathLike = '.') -> Iterator[Finding]:
    """Run all checks in turn; ``root`` is the folder that holds ``data/``."""
    yield from _guarded('Python', _python)
    yield from _guarded('torch', _torch)
    yield from _guarded('host libraries', _hosts)
    yield from _guarded('mmcv op', _mmcv_op)
    yield from _guarded('lckd_mm', _package)
    yield from _guarded('devices', _devices)
    yield from _guarded('Slurm', _slurm)
    for what, path, cure in _DATA:
        if (Path(root) / path).exists():
            yield Finding(what, 'ok', path)
        else:
            yield Finding(what, 'note', f'not at {path}', cure)


def _guarded(what: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Turn any exception of a check into a finding, so that the report goes on: a broken installation may raise any."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(what, 'wrong', f'{type(error).__name__}: {" ".join(str(error).split())}', _INSTALL[_family()])


def _family() -> str:
    """The family with more of its distributions installed."""
    count = {name: sum(_version(d) is not None for d, _ in hosts.values()) for name, hosts in FAMILIES.items()}
    return max(count, key=count.get)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _python() -> Iterator[Finding]:
    says = f'{platform.python_version()} ({sys.executable}), {platform.platform()}'
    fits = sys.version_info >= (3, 10)
    yield Finding('Python', 'ok' if fits else 'wrong', says, '' if fits else 'make install PYTHON=python3.11')


def _torch() -> Iterator[Finding]:
    for name, tested in TORCH.items():
        version = _version(name)
        if version is None:
            yield Finding(name, 'wrong', 'not installed', _INSTALL[_family()])
            continue
        plain = version.partition('+')[0]
        yield Finding(name, 'ok' if plain == tested else 'note', version + _tested(plain, tested))
    if None in map(_version, TORCH):
        return
    import torch
    from torchvision.ops import nms

    # A torchvision built for another torch imports, but its ops fail.
    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)


def _tested(version: str, tested: str) -> str:
    return '' if version == tested else f' (tested with {tested})'


def _hosts() -> Iterator[Finding]:
    family = _family()
    other = next(name for name in FAMILIES if name != family)
    for module, (distribution, tested) in FAMILIES[family].items():
        version = _version(distribution)
        if version is None:
            yield Finding(module, 'wrong', f'{distribution} is not installed', _INSTALL[family])
        else:
            state = 'ok' if version == tested else 'note'
            yield Finding(module, state, f'{distribution} {version}' + _tested(version, tested))
    mixed = [d for d, _ in FAMILIES[other].values() if _version(d) is not None]
    if mixed:
        yield Finding(
            'host libraries',
            'wrong',
            f'{", ".join(mixed)} of the other family beside these: both own the same import names',
            f'remove .venv, then {_INSTALL[family]}',
        )


def nms_of_two_boxes() -> list[int]:
    """The boxes that mmcv's nms keeps of two overlapping ones, the second scoring higher: ``[1]`` if its ops work.

    An mmcv without ops, or built for another torch, still imports; only calling an op tells.
    """
    import torch
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    return nms(boxes, torch.tensor([0.5, 0.9]), iou_threshold=0.5)[1].tolist()


def _mmcv_op() -> Iterator[Finding]:
    kept = nms_of_two_boxes()
    if kept == [1]:
        yield Finding('mmcv op', 'ok', 'nms of two boxes gives the right one')
    else:
        yield Finding('mmcv op', 'wrong', f'nms of two boxes kept {kept}, and [1] is right', _INSTALL[_family()])


def _package() -> Iterator[Finding]:
    from . import __version__
    from .registry import HOOKS, MODELS

    MODELS.import_from_location()
    HOOKS.import_from_location()
    where = Path(__file__).parent
    says = f'{__version__} in {where}: {len(MODELS.module_dict)} models and losses, {len(HOOKS.module_dict)} hooks'
    yield Finding('lckd_mm', 'ok', says)
    from .functional.lipschitz import native

    if native.available():
        yield Finding('Lipschitz core', 'ok', 'compiled for the CPU')
    else:
        cure = 'with a C compiler (gcc or clang) on this machine, install lckd_mm again'
        yield Finding('Lipschitz core', 'note', "not compiled: on a CPU torch's operations take longer", cure)


def _devices() -> Iterator[Finding]:
    import torch

    threads = f'{os.cpu_count()} cores, {torch.get_num_threads()} threads'
    yield Finding('CPU', 'ok', threads)
    if not torch.cuda.is_available():
        yield Finding('GPU', 'note', f'none that torch {torch.__version__} sees', 'training runs on the CPU, slowly')
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        says = f'{device.name}, {device.total_memory / 2**30:.0f} GiB, capability {device.major}.{device.minor}'
        yield Finding(f'GPU {i}', 'ok', says)


def _slurm() -> Iterator[Finding]:
    srun = shutil.which('srun')
    if srun:
        yield Finding('Slurm', 'ok', srun)
    else:
        yield Finding('Slurm', 'note', 'no srun', 'only tools/slurm_*.sh need it')


def main(argv: list[str] | None = None) -> int:
    """Print the report; exit status 1 if anything that training needs is wrong."""
    parser = argparse.ArgumentParser(
        prog='python -m lckd_mm.doctor',
        description='What is installed, whether it works, and how to cure what does not',
    )
    parser.add_argument('--root', default='.', help='where data/ is looked for (default: here)')
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
