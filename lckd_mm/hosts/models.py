"""What differs between the host libraries: building their models, made-up samples, preprocessors."""

import contextlib
import copy
import importlib.util
import os
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from ..contexts import eval_mode, preserved_rng
from ..errors import one_line

HOSTS = ('mmpretrain', 'mmseg', 'mmdet')
# mmengine looks for the distribution of these names, and where it finds none, hub.get_config pip-installs it: upstream
# mmsegmentation, say, over the fork of it that is there. Under a module's own name both families are found.
MODULE2PACKAGE.update({module: module for module in HOSTS})
# Of an editable install the metadata tell mmengine a folder that is not there; a file inside leads to the right one.
MODULE2PACKAGE['lckd_mm'] = 'lckd_mm.registry'


def host_of(model: nn.Module) -> str | None:
    """The host library that a model (or one of its base classes) comes from."""
    packages = (kind.__module__.partition('.')[0] for kind in type(model).__mro__)
    return next((package for package in packages if package in HOSTS), None)


def unwrapped(model: nn.Module) -> nn.Module:
    """A model without its wrapper (DDP and the like), if it has one."""
    return model.module if is_model_wrapper(model) else model


def read_model_config(source: dict | str, who: str) -> tuple[dict, str | None]:
    """A model's config and its default scope, from a dict, a config file's path, or ``'mmseg::fcn/….py'``.

    mmpretrain's top-level ``data_preprocessor`` is moved into the model.

    Raises:
        FileNotFoundError: no such file. KeyError: a config without ``model``. TypeError: something else was given.
    """
    if isinstance(source, dict):
        return copy.deepcopy(source), None
    if not isinstance(source, str):
        raise TypeError(f'{who}: expected a model dict or a config file, got {type(source).__name__}')
    cfg = load_config(source, who)
    if 'model' not in cfg:
        raise KeyError(f'{who}: the config {source!r} defines no `model`')
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    return model, cfg.get('default_scope')


def load_config(source: str, who: str = 'config') -> Config:
    """A config by path or by ``'mmseg::fcn/….py'``, of whichever family of host libraries is installed.

    Raises:
        FileNotFoundError: it is not there, or inherits from a file that is not. ModuleNotFoundError: it names a package
            that is not installed; nothing is ever installed on the way.
    """
    package, _, path = source.rpartition('::')
    spec = importlib.util.find_spec(package) if package else None
    if package and spec is None:
        raise ModuleNotFoundError(f'{who}: {source!r} needs {package}, which is not installed', name=package)
    try:
        if package and '/' not in path:
            # mmengine takes configs in folders only, and our front doors stand above them.
            return Config.fromfile(os.path.join(os.path.dirname(spec.origin), '.mim', 'configs', path))
        return get_config(source) if package else Config.fromfile(source)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{who}: no config file {source!r} ({error})') from None
    except ImportError as error:
        # Upstream's pkg_resources and the forks' importlib say it in classes and words of their own.
        raise ModuleNotFoundError(
            f'{who}: {source!r} inherits from a package that is not installed ({error})', name=package
        ) from None
    except Exception as error:
        raise ValueError(
            f'{who}: cannot read the config {source!r}: {type(error).__name__}: {one_line(error)}'
        ) from error


def build_named_model(cfg: dict, scope: str | None, who: str) -> nn.Module:
    """:func:`build_model`, where whatever the host raises becomes a ValueError that begins with ``who``."""
    try:
        return build_model(cfg, scope)
    except Exception as error:
        kind = cfg.get('type')
        name = kind.__name__ if isinstance(kind, type) else repr(kind)
        raise ValueError(
            f'{who}: its model {name} cannot be built: {type(error).__name__}: {one_line(error)}'
        ) from error


def build_model(cfg: dict, scope: str | None = None) -> nn.Module:
    """Build a host's model as the host's own Runner would; ``scope`` is the default scope of its config, if any."""
    with DefaultScope.overwrite_default_scope(scope) if scope else contextlib.nullcontext():
        return MMENGINE_MODELS.build(copy.deepcopy(ConfigDict(cfg)))


def training_size(model: nn.Module, default: tuple[int, int] = (224, 224)) -> tuple[int, int]:
    """Height and width of the images that the model's preprocessor pads to, else ``default``."""
    size = getattr(model.data_preprocessor, 'size', None)
    return tuple(size) if size is not None else default


def fabricate_samples(model: nn.Module, batch: int, size: tuple[int, int]) -> list:
    """Data samples with ground truth that fit a batch of images of ``size``, for a run that only looks at shapes."""
    host, (height, width) = host_of(model), size
    meta = dict(
        img_shape=size,
        ori_shape=size,
        pad_shape=size,
        batch_input_shape=size,
        scale_factor=(1.0, 1.0),
        padding_size=[0, 0, 0, 0],
        flip=False,
        flip_direction=None,
        img_path='',
    )
    samples = []
    for _ in range(batch):
        if host == 'mmseg':
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=torch.zeros(1, height, width).long()))
        elif host == 'mmdet':
            from mmdet.structures import DetDataSample
            from mmdet.structures.mask import BitmapMasks

            boxes = torch.tensor([[width * 0.2, height * 0.2, width * 0.8, height * 0.8]])
            truth = InstanceData(bboxes=boxes, labels=torch.zeros(1).long())
            # Only where they are read: some heads take them for tensors.
            if getattr(model, 'with_mask', False) or hasattr(model, 'panoptic_head'):
                truth.masks = BitmapMasks(np.ones((1, height, width), dtype=np.uint8), height, width)
            ignored = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
            sample = DetDataSample(metainfo=meta, gt_instances=truth, ignored_instances=ignored)
        elif host == 'mmpretrain':
            from mmpretrain.structures import DataSample

            sample = DataSample(metainfo=meta).set_gt_label(0)
        else:
            raise TypeError(
                f'{type(model).__name__} is no model of {", ".join(HOSTS)}: a Distiller takes an mmpretrain '
                'classifier, an mmseg segmentor or an mmdet detector'
            )
        samples.append(sample)
    return samples


def run_once(model: nn.Module, size: tuple[int, int], mode: str, gradient: bool = False) -> Any:
    """One forward of a black image, in evaluation, without gradient unless asked for; modes and random states as
    before on leaving."""
    parameter = next(model.parameters())
    with preserved_rng(), eval_mode(model, gradient):
        return model(parameter.new_zeros(1, 3, *size), fabricate_samples(model, 1, size), mode=mode)


def owner_head(model: nn.Module, path: str) -> nn.Module | None:
    """The innermost module on ``path`` that knows its class scores: a host's head."""
    parts = path.split('.')
    for end in range(len(parts), 0, -1):
        module = model.get_submodule('.'.join(parts[:end]))
        if hasattr(module, 'num_classes'):
            return module
    return None


def normalisation(preprocessor: nn.Module | None) -> tuple[list[float], list[float], bool] | None:
    """(mean, std, channels flipped) that a preprocessor applies; None where it does not say.

    mean and std count the channels as they come out; flipped is against the order of the loaded image.
    """
    if not hasattr(preprocessor, '_enable_normalize'):
        return None
    # The three hosts name the same switch differently.
    flipped = any(
        bool(getattr(preprocessor, name, False)) for name in ('channel_conversion', '_channel_conversion', 'to_rgb')
    )
    if not preprocessor._enable_normalize:
        return [0.0] * 3, [1.0] * 3, flipped
    return preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist(), flipped


def valid_region(inputs: Tensor, data_samples: list | None) -> Tensor | None:
    """(B, 1, H, W), true where a batch holds image and not padding; None where nothing is padded or said of it."""
    if not data_samples:
        return None
    height, width = inputs.shape[2:]
    mask, padded = torch.ones(len(inputs), 1, height, width, dtype=torch.bool, device=inputs.device), False
    for row, sample in zip(mask, data_samples, strict=False):
        left, right, top, bottom = sample.metainfo.get('padding_size') or (0, 0, 0, 0)
        h, w = (sample.metainfo.get('img_shape') or (height, width))[:2]
        # mmseg counts the padding of each side; the others pad at the right and the bottom, beyond img_shape.
        bottom, right = max(bottom, height - min(h, height)), max(right, width - min(w, width))
        if left or right or top or bottom:
            padded = True
            inside = torch.zeros_like(row)
            inside[:, top : height - bottom, left : width - right] = True
            row &= inside
    return mask if padded else None
