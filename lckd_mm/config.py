"""Questions about a config: does it distil, the student's own config, the image size, are the files it needs there."""

import copy
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry
from torch import nn

from .errors import tool_command
from .hosts import as_built, build_model, datasets
from .registry import DATASETS, HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, resolved, type_name

# Hooks that train() adds by default.
OWN_HOOKS = {
    'resume': 'lckd_mm.ResumeHook',
    'distillation': 'lckd_mm.DistillationHook',
    'non_finite': 'lckd_mm.NonFiniteHook',
}
_PREPARE = tool_command('prepare_data')
_DATA_HINTS = {
    'data/bccd': f'lay it out with: {_PREPARE} bccd SOURCE (configs/bccd/README.md)',
    'data/nuclei': f'lay it out with: {_PREPARE} nuclei SOURCE (configs/nuclei/README.md)',
    'data/fashion_mnist': f'lay it out with: {_PREPARE} fashion-mnist SOURCE (configs/fashion_mnist/README.md)',
    'digit_scenes': f'write it with: {_PREPARE} digit-scenes',
    'SegmentationClassAug': f'convert SBD with: {_PREPARE} sbd SBD_ROOT data/VOCdevkit/VOC2012',
    'VOC': "unpack PASCAL VOC's trainval archive there (docs/getting-started.md)",
}


def kind_of(cfg: Config, config: Any, within: Registry = MODELS) -> Any:
    """What the ``type`` of a dict in ``cfg`` stands for: see :func:`~lckd_mm.registry.resolved`."""
    return resolved(config.get('type'), within, cfg.get('default_scope')) if isinstance(config, dict) else None


def is_kind(kind: Any, name: str, within: Registry = MODELS) -> bool:
    """Whether a class is, or derives from, the one of this package that has this name."""
    return isinstance(kind, type) and issubclass(kind, within.get(name))


def has_teacher(cfg: Config) -> bool:
    return is_kind(kind_of(cfg, cfg.model), 'lckd_mm.Distiller')


def teachers_of(cfg: Config) -> dict[str, ConfigDict]:
    """The teachers that a distillation's config names, by name, in this order; one alone is 'teacher'."""
    named = cfg.model.get('teachers') or {}
    return dict(sorted(named.items())) or ({'teacher': cfg.model.teacher} if cfg.model.get('teacher') else {})


def is_online(cfg: Config) -> bool:
    """Whether several nets learn together, without a teacher."""
    return is_kind(kind_of(cfg, cfg.model), 'lckd_mm.OnlineDistiller')


def has_several_optimizers(cfg: Config) -> bool:
    """Whether nets that learn together have optimizers of their own."""
    constructor = resolved((cfg.get('optim_wrapper') or {}).get('constructor'), OPTIM_WRAPPER_CONSTRUCTORS)
    return is_kind(constructor, 'lckd_mm.OnlineOptimWrapperConstructor', OPTIM_WRAPPER_CONSTRUCTORS)


def is_distillation(cfg: Config) -> bool:
    return has_teacher(cfg) or is_online(cfg)


def student_config(cfg: Config, net: int = 0) -> Config:
    """The student's config without the Distiller and this package's hooks, so that plain tools can test it.

    ``net``: index of the net, if several learn together.
    """
    nets = len(cfg.model.nets) if is_online(cfg) else 1
    if not 0 <= net < nets:
        raise ValueError(f'--net {net}: the config has nets 0 to {nets - 1}')
    cfg = copy.deepcopy(cfg)  # a dict of it would lose what a pure-Python config knows of its imports
    if is_distillation(cfg):
        cfg.model = ConfigDict(cfg.model.nets[net] if is_online(cfg) else cfg.model.student)

    def own(hook: Any) -> bool:
        return getattr(kind_of(cfg, hook, HOOKS), '__module__', '').startswith('lckd_mm.')

    cfg.default_hooks = {k: v for k, v in cfg.get('default_hooks', {}).items() if not own(v) and k not in OWN_HOOKS}
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if not own(hook)]
    return cfg


def plain_model(cfg: Config, net: int = 0) -> nn.Module:
    """Build, without initialising, the model of a config; for a distillation config, the student."""
    return build_model(student_model(cfg, net))


def student_model(cfg: Config, net: int = 0) -> dict:
    """The model dict of a config, or of its student, with mmpretrain's top-level preprocessor in it."""
    model = student_config(cfg, net).model
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return model


def input_size(cfg: Config, model: nn.Module) -> tuple[int, int]:
    """Height and width of a config's training images.

    The first one known of: ``dry_run_size``; the size the preprocessor pads to; the last fixed-size crop or resize of
    the training pipeline; the size of CIFAR or digits images; 224.
    """
    size = cfg.model.get('dry_run_size') if is_distillation(cfg) else None
    size = size or getattr(model.data_preprocessor, 'size', None)
    if size is None:
        dataset = next(plain_datasets((cfg.get('train_dataloader') or {}).get('dataset')), {})
        size = _size_of(dataset)
        if size is None:
            kind = type_name(dataset.get('type'))
            size = 32 if 'CIFAR' in kind else dataset.get('size', 16) if kind == 'Digits' else 224
    return (size, size) if isinstance(size, int) else tuple(size)


def size_in_tests(cfg: Config, model: nn.Module) -> tuple[int, int]:
    """Height and width of the images that a net gets in a test, padded to the preprocessor's divisor.

    The first one known of: the window of a test by sliding windows; the last fixed-size crop or resize of the test
    pipeline, for one that keeps the ratio the largest size; :func:`input_size`.
    """
    rule = getattr(model, 'test_cfg', None) or {}
    size = rule.get('crop_size') if rule.get('mode') == 'slide' else None
    size = size or _size_of(next(plain_datasets((cfg.get('test_dataloader') or {}).get('dataset')), {}))
    size = size or input_size(cfg, model)
    preprocessor = model.data_preprocessor
    # mmseg names what it pads to in a test apart.
    rule = getattr(preprocessor, 'test_cfg', None) or {}
    divisor = rule.get('size_divisor') or getattr(preprocessor, 'pad_size_divisor', 1)
    return tuple(-(-n // divisor) * divisor for n in ((size, size) if isinstance(size, int) else size))


def _size_of(dataset: Mapping) -> int | tuple[int, int] | None:
    """Height and width of the last fixed-size crop or resize of a data set's pipeline; None if it has none."""
    size = None
    for step in dataset.get('pipeline') or []:
        wanted = step.get('crop_size') or (step.get('scale') if type_name(step.get('type')) == 'Resize' else None)
        if isinstance(wanted, int) or (isinstance(wanted, (list, tuple)) and len(wanted) == 2):
            # Scales are (width, height), crops (height, width).
            size = wanted if 'crop_size' in step or isinstance(wanted, int) else wanted[::-1]
    return size


def loads_files(cfg: Config) -> bool:
    """Whether the images of a test come from files, as BGR; else the data set holds them, as CIFAR does in RGB."""
    pipeline = _test_pipeline(cfg)
    return not pipeline or any(re.match(r'Load\w*Image', type_name(step.get('type'))) for step in pipeline)


def _test_pipeline(cfg: Config) -> list[dict]:
    dataset = next(plain_datasets((cfg.get('test_dataloader') or {}).get('dataset')), {})
    return dataset.get('pipeline') or []


def loads_bytes(cfg: Config) -> bool:
    """Whether the test pipeline is known to load images of bytes."""
    loader = next(iter(_test_pipeline(cfg)), {})
    plain = loader.get('color_type', 'color') in ('color', 'grayscale') and not loader.get('to_float32')
    return type_name(loader.get('type')) == 'LoadImageFromFile' and plain


def check_teacher_file(cfg: Config) -> None:
    """Raise FileNotFoundError for a missing teacher checkpoint, before any dataset is read."""
    named = cfg.model.get('teachers')
    named = {f'teachers.{name}': one for name, one in named.items()} if isinstance(named, dict) else {}
    for path, teacher in (named or {'teacher': cfg.model.get('teacher')}).items():
        checkpoint = teacher.get('checkpoint') if isinstance(teacher, dict) else None
        if as_built(checkpoint) and 'module' in teacher:
            continue
        if isinstance(checkpoint, str) and '://' not in checkpoint and not Path(checkpoint).is_file():
            raise FileNotFoundError(
                f'{path}: no checkpoint at {checkpoint!r}; train the teacher first, or name another with '
                f'--cfg-options model.{path}.checkpoint=PATH'
            )


def check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Raise FileNotFoundError, with the path and a hint, if a dataset is not on disk; ValueError for no dict."""
    for loader in loaders:
        if not isinstance(cfg.get(loader) or {}, dict):
            raise ValueError(f'{loader} must be a dict with a dataset, got {cfg[loader]!r}')
        for dataset in plain_datasets((cfg.get(loader) or {}).get('dataset')):
            if dataset.get('download', _downloads(kind_of(cfg, dataset, DATASETS))):
                continue
            root = dataset.get('data_root') or ''
            prefix = dataset.get('data_prefix')
            prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
            for part in (None, dataset.get('ann_file'), *prefixes):
                path = os.path.join(root, part) if isinstance(part, str) and part else root
                if path and '://' not in path and not os.path.exists(path):
                    hint = next((h for key, h in _DATA_HINTS.items() if key in path), 'set data_root to where it is')
                    raise FileNotFoundError(f'{loader}: no data at {path!r} ({type_name(dataset.type)}); {hint}')


def _downloads(kind: Any) -> bool:
    """Whether a dataset fetches its files unless it is told not to."""
    parameters = (inspect.signature(base).parameters for base in getattr(kind, '__mro__', ())[:-1])
    return next((own['download'].default is True for own in parameters if 'download' in own), False)


def plain_datasets(dataset: Any) -> Iterator[ConfigDict]:
    """Of a data set's config and those that it wraps, those that wrap no other."""
    return (of for of in datasets(dataset) if 'type' in of and not of.get('datasets') and 'dataset' not in of)


def add_hooks(cfg: Config) -> None:
    """Add the hooks that every training has unless its config has them, or sets them to None.

    These are ResumeHook, and SafeCheckpointHook in place of a plain CheckpointHook; for a distillation also
    DistillationHook and NonFiniteHook, or OnlineHook if nets learn together. Values that the config sets, such as
    ``default_hooks.non_finite.action``, are kept.
    """
    cfg.setdefault('default_hooks', {})
    hooks = cfg.default_hooks  # a Config stores a copy of what is assigned
    kinds = dict(OWN_HOOKS)
    if is_online(cfg):
        kinds.update(distillation='lckd_mm.OnlineHook')
        del kinds['non_finite']  # it supports only one optimizer
    for name, kind in kinds.items():
        given = hooks.get(name, {})
        others = [*(hook for key, hook in hooks.items() if key != name), *(cfg.get('custom_hooks') or [])]
        if given is None:
            del hooks[name]
        elif any(is_kind(kind_of(cfg, hook, HOOKS), kind, HOOKS) for hook in others):
            continue
        elif is_distillation(cfg) or name == 'resume':
            hooks[name] = ConfigDict(type=kind)
            hooks[name].update(given)  # without building what a pure-Python config imports
    hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    if kind_of(cfg, hooks['checkpoint'], HOOKS) is CheckpointHook:
        hooks['checkpoint']['type'] = 'lckd_mm.SafeCheckpointHook'
