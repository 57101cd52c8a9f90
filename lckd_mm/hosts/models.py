"""Configs and models of the host libraries: reading, building and identifying them."""

import contextlib
import copy
import importlib.util
import inspect
import os
from collections.abc import Mapping

from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ..errors import one_line
from ..registry import type_name
from ..storage.files import installed

HOSTS = ('mmpretrain', 'mmseg', 'mmdet')


def host_of(model: nn.Module) -> str | None:
    """The host library that a model (or one of its base classes) comes from."""
    packages = (kind.__module__.partition('.')[0] for kind in type(model).__mro__)
    return next((package for package in packages if package in HOSTS), None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside its wrapper, such as DDP, if it has one."""
    return model.module if is_model_wrapper(model) else model


def read_model_config(source: dict | str, who: str) -> tuple[dict, str | None]:
    """A model's config and its default scope, from a dict, a config file's path, or ``'mmseg::fcn/….py'``.

    mmpretrain's top-level ``data_preprocessor`` is moved into the model.

    Raises:
        FileNotFoundError: no such file. KeyError: the config has no ``model``. TypeError: neither a dict nor a string.
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
    # Configs of backbones alone name no scope.
    return model, cfg.get('default_scope') or source.rpartition('::')[0] or None


def load_config(source: str, who: str = 'config') -> Config:
    """Load a config by path or by ``'mmseg::fcn/….py'``, from whichever family of host libraries is installed.

    Raises:
        FileNotFoundError: it, or a file it inherits from, does not exist. ModuleNotFoundError: it names a package that
            is not installed; nothing is ever installed for it. ValueError: it cannot be read.
    """
    package, _, path = source.rpartition('::')
    spec = importlib.util.find_spec(package) if package else None
    if package and spec is None:
        raise ModuleNotFoundError(f'{who}: {source!r} needs {package}, which is not installed', name=package)
    try:
        with installed():
            if package and '/' not in path:
                # mmengine takes configs in folders only, and our front doors stand above them.
                return Config.fromfile(os.path.join(os.path.dirname(spec.origin), '.mim', 'configs', path))
            return get_config(source) if package else Config.fromfile(source)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{who}: no config file {source!r} ({error})') from None
    except ImportError as error:
        # Upstream uses pkg_resources and the forks importlib, whose errors differ in class and wording.
        raise ModuleNotFoundError(
            f'{who}: {source!r} inherits from a package that is not installed ({error})', name=package
        ) from None
    except Exception as error:
        raise ValueError(f'{who}: cannot read the config {source!r}: {one_line(error)}') from error


def build_named_model(
    cfg: Mapping, who: str, scope: str | None = None, preprocessor: Mapping | nn.Module | None = None
) -> BaseModel:
    """:func:`build_model` for a net of a distiller.

    Args:
        who: names the net in error messages.
        preprocessor: a config for the net's preprocessor, used if its own config has none; a module is ignored.
    Raises:
        ValueError: the host cannot build it. TypeError: it is not a model of a host that takes a batch of images.
    """
    if isinstance(preprocessor, Mapping):
        cfg = {'data_preprocessor': preprocessor, **cfg}
    try:
        model = build_model(cfg, scope)
    except Exception as error:
        raise ValueError(f'{who}: its model {type_name(cfg.get("type"))} cannot be built: {one_line(error)}') from error
    if not isinstance(model, BaseModel) or host_of(model) is None:
        raise TypeError(f'{who}: {type(model).__name__} is not a model of mmpretrain, mmseg or mmdet')
    if (other := _other_inputs(model)) is not None:
        raise TypeError(f'{who}: {type(model).__name__} {other}')
    return model


#: By class of the host: models whose batch is not one of images with their labels, and what to give instead.
_OTHER_INPUTS = {
    'BaseSelfSupervisor': 'pretrains a backbone on several views of an image or on hidden patches, and two nets are '
    "compared on the same images; give that backbone, as dict(type='ImageClassifier', backbone=…); a teacher reads its "
    "weights from the same checkpoint with allow=['^(?!backbone)']",
    'SemiBaseDetector': 'is a student and a teacher itself, which take several batches; give the config of its '
    '`detector`, and labelled images',
    'BaseMOTModel': 'takes videos, and two nets are compared on single images; give a detector, such as its `detector`',
}


def _other_inputs(model: nn.Module) -> str | None:
    """What a model takes in place of a batch of images, and what to give; None if it takes one."""
    for kind in type(model).__mro__:
        if kind.__name__ in _OTHER_INPUTS:
            return _OTHER_INPUTS[kind.__name__]
    if 'inputs' in inspect.signature(model.forward).parameters:
        return None
    return 'takes text beside images, and two nets are compared on images alone; give a classifier'


def build_model(cfg: dict, scope: str | None = None) -> nn.Module:
    """Build a host's model as the host's own Runner would; ``scope`` is its config's default scope, if any."""
    with DefaultScope.overwrite_default_scope(scope) if scope else contextlib.nullcontext():
        return MMENGINE_MODELS.build(copy.deepcopy(ConfigDict(cfg)))


def own_losses(model: nn.Module, inputs: Tensor, data_samples: list | None) -> dict:
    """A net's own losses; ``loss`` is renamed ``loss_task``, since mmengine uses ``loss`` for the total.

    Raises:
        ValueError: a classifier without a head, which can be a teacher alone.
    """
    if getattr(model, 'head', model) is None:
        raise ValueError(
            f'{type(model).__name__} has no head, so it has no loss of its own: give it one, such as '
            "head=dict(type='LinearClsHead', num_classes=…, in_channels=…); as a teacher it needs none"
        )
    losses = model(inputs, data_samples, mode='loss')
    return {('loss_task' if name == 'loss' else name): value for name, value in losses.items()}
