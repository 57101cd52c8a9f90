"""Questions about a config: does it distil, the student's own config, the image size, are the files it needs there."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from torch import nn

from .hosts import build_model

# Hooks that train() adds by default.
OWN_HOOKS = {
    'resume': 'lckd_mm.ResumeHook',
    'distillation': 'lckd_mm.DistillationHook',
    'non_finite': 'lckd_mm.NonFiniteHook',
}
DISTILLER = ('lckd_mm.Distiller', 'Distiller')
ONLINE = ('lckd_mm.OnlineDistiller', 'OnlineDistiller')
ONLINE_CONSTRUCTOR = ('lckd_mm.OnlineOptimWrapperConstructor', 'OnlineOptimWrapperConstructor')
_DATA_HINTS = {
    'digit_scenes': 'write it with: python tools/prepare_data.py digit-scenes',
    'SegmentationClassAug': 'convert SBD with: python tools/prepare_data.py sbd SBD_ROOT data/VOCdevkit/VOC2012',
    'VOC': "unpack PASCAL VOC's trainval archive there (README.md, section Data)",
}


def has_teacher(cfg: Config) -> bool:
    return cfg.model.type in DISTILLER


def is_online(cfg: Config) -> bool:
    """Whether several nets learn together, without a teacher."""
    return cfg.model.type in ONLINE


def is_distillation(cfg: Config) -> bool:
    return has_teacher(cfg) or is_online(cfg)


def student_config(cfg: Config, net: int = 0) -> Config:
    """The student's config without the Distiller and this package's hooks, so that plain tools can test it.

    ``net``: index of the net, if several learn together.
    """
    nets = len(cfg.model.nets) if is_online(cfg) else 1
    if not 0 <= net < nets:
        raise ValueError(f'--net {net}: the config has nets 0 to {nets - 1}')
    if is_distillation(cfg):
        cfg = Config(cfg._cfg_dict.to_dict(), filename=cfg.filename)
        cfg.model = ConfigDict(cfg.model.nets[net] if is_online(cfg) else cfg.model.student)

    def own(hook: Any) -> bool:
        return isinstance(hook, dict) and str(hook.get('type', '')).startswith('lckd_mm.')

    cfg.default_hooks = {k: v for k, v in cfg.get('default_hooks', {}).items() if not own(v) and k not in OWN_HOOKS}
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if not own(hook)]
    return cfg


def plain_model(cfg: Config, net: int = 0) -> nn.Module:
    """Build, without initialising, the model of a config; for a distillation config, the student."""
    model = student_config(cfg, net).model
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return build_model(model)


def input_size(cfg: Config, model: nn.Module) -> tuple[int, int]:
    """Height and width of a config's training images.

    The first one known of: ``dry_run_size``; the size the preprocessor pads to; the last fixed-size crop or resize of
    the training pipeline; the size of CIFAR or digits images; 224.
    """
    size = cfg.model.get('dry_run_size') if is_distillation(cfg) else None
    size = size or getattr(model.data_preprocessor, 'size', None)
    if size is None:
        dataset = next(_datasets((cfg.get('train_dataloader') or {}).get('dataset')), {})
        for step in dataset.get('pipeline') or []:
            wanted = step.get('crop_size') or (step.get('scale') if step.get('type') == 'Resize' else None)
            if isinstance(wanted, int) or (isinstance(wanted, (list, tuple)) and len(wanted) == 2):
                # Scales are (width, height), crops (height, width).
                size = wanted if 'crop_size' in step or isinstance(wanted, int) else wanted[::-1]
        if size is None:
            kind = str(dataset.get('type'))
            size = 32 if 'CIFAR' in kind else dataset.get('size', 16) if kind.endswith('Digits') else 224
    return (size, size) if isinstance(size, int) else tuple(size)


def check_teacher_file(cfg: Config) -> None:
    """Raise FileNotFoundError for a missing teacher checkpoint, before any dataset is read."""
    teacher = cfg.model.get('teacher')
    checkpoint = teacher.get('checkpoint') if isinstance(teacher, dict) else None
    if isinstance(checkpoint, str) and '://' not in checkpoint and not Path(checkpoint).is_file():
        raise FileNotFoundError(
            f'teacher: no checkpoint at {checkpoint!r}; train the teacher first, or name another with '
            '--cfg-options model.teacher.checkpoint=PATH'
        )


def check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Raise FileNotFoundError, with the path and a hint, if a dataset is not on disk; ValueError for no dict."""
    for loader in loaders:
        if not isinstance(cfg.get(loader) or {}, dict):
            raise ValueError(f'{loader} must be a dict with a dataset, got {cfg[loader]!r}')
        for dataset in _datasets((cfg.get(loader) or {}).get('dataset')):
            if dataset.get('download', 'CIFAR' in dataset.type or 'MNIST' in dataset.type):
                continue
            root = dataset.get('data_root') or ''
            prefix = dataset.get('data_prefix')
            prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
            for part in (None, dataset.get('ann_file'), *prefixes):
                path = os.path.join(root, part) if isinstance(part, str) and part else root
                if path and '://' not in path and not os.path.exists(path):
                    hint = next((h for key, h in _DATA_HINTS.items() if key in path), 'set data_root to where it is')
                    raise FileNotFoundError(f'{loader}: no data at {path!r} ({dataset.type}); {hint}')


def _datasets(dataset: Any) -> Iterator[ConfigDict]:
    if not isinstance(dataset, dict):
        return
    inner = dataset.get('datasets') or ([dataset.dataset] if 'dataset' in dataset else [])
    if not inner and 'type' in dataset:
        yield dataset
    for one in inner:
        yield from _datasets(one)
