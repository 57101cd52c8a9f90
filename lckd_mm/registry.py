"""Registries of this package, children of mmengine's, so that ``type='lckd_mm.X'`` works from any host's config.

mmengine imports this file, and then the ``locations`` below, when it meets the scope ``lckd_mm``, so configs need no
``custom_imports``.
"""

import contextlib
import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from . import errors

try:
    import mmengine
    from mmengine import registry
    from mmengine.utils import digit_version
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'lckd_mm: the host library {error.name!r} is not installed; run {"`make install`, or " * errors.REPOSITORY}'
        "`pip install 'lckd_mm[hosts]'` and then mmcv as the README says",
        name=error.name,
    ) from None

if digit_version(mmengine.__version__) < digit_version('0.10.0'):
    raise ImportError(f'lckd_mm: mmengine {mmengine.__version__} is too old, 0.10.0 or later is needed')

# Imported after the checks above, which report what is missing.
from torch import nn


def _child(parent: registry.Registry, *modules: str) -> registry.Registry:
    """A child of mmengine's registry, for the classes in the given modules of this package."""
    locations = [f'lckd_mm.{module}' for module in modules]
    return registry.Registry(parent.name, parent=parent, scope='lckd_mm', locations=locations)


MODELS = _child(registry.MODELS, 'distillation', 'losses', 'losses.critics', 'connectors', 'backbones', 'heads')
MODEL_WRAPPERS = _child(registry.MODEL_WRAPPERS, 'distillation.online_optim')
OPTIM_WRAPPER_CONSTRUCTORS = _child(registry.OPTIM_WRAPPER_CONSTRUCTORS, 'distillation.online_optim')
OPTIM_WRAPPERS = _child(registry.OPTIM_WRAPPERS, 'optim')
HOOKS = _child(registry.HOOKS, 'hooks')
METRICS = _child(registry.METRICS, 'evaluation.metrics')
DATASETS = _child(registry.DATASETS, 'data.digits', 'data.images', 'data.replayed')
WEIGHT_INITIALIZERS = _child(registry.WEIGHT_INITIALIZERS, 'backbones.pretrained')


def resolved(kind: Any, within: registry.Registry = MODELS, scope: str | None = None) -> Any:
    """What a config's ``type`` stands for, looked up as mmengine does; None for a name that nothing has.

    Args:
        kind: a class or function, which is returned; a registered name, with or without a scope; an import path, which
            is what a class in a pure-Python config becomes when the config is dumped.
        scope: the config's default scope, for names without one.
    """
    if not isinstance(kind, str):
        return kind
    found = None
    # mmengine's own error for a bad scope or name is unclear.
    with contextlib.suppress(Exception), within.switch_scope_and_registry(scope) as scoped:
        found = scoped.get(kind)
    return found


def type_name(kind: Any) -> str:
    """The name of a class, or the last part of the text that stands for one."""
    return getattr(kind, '__name__', str(kind).rpartition('.')[2])


def registered_class(config: Mapping, who: str) -> type:
    """The class that a config's ``type`` names; the prefix ``lckd_mm.`` is optional for ours."""
    if not isinstance(config, Mapping) or 'type' not in config:
        raise ValueError(f"{who}: expected a dict with a type, such as dict(type='lckd_mm.KDLoss'), got {config!r}")
    kind = config['type']
    MODELS.import_from_location()
    found = MODELS.module_dict.get(kind) if isinstance(kind, str) else None
    found = found or resolved(kind)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        close = difflib.get_close_matches(type_name(kind), MODELS.module_dict, 3, 0.5)
        names = ', '.join(f"'lckd_mm.{name}'" for name in close or ('KDLoss', 'OFDLoss', 'ConvBN'))
        raise KeyError(
            f'{who}: unknown type {kind!r}; expected a registered class, such as {names} (docs/reference.md)'
        )
    return found


def build_registered(config: Mapping, who: str) -> nn.Module:
    """Build the class that :func:`registered_class` finds; ValueError for a wrong argument, with the signature."""
    kind = registered_class(config, who)
    arguments = {key: value for key, value in config.items() if key != 'type'}
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise ValueError(f'{who}: {kind.__name__} {error}; it takes {inspect.signature(kind)}') from None
    try:
        module = kind(**arguments)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        text = errors.one_line(error)
        text = text if text.startswith(kind.__name__) else f'{kind.__name__} fails: {text}'
        raise ValueError(f'{who}: {text}') from error
    if not isinstance(module, nn.Module):
        raise ValueError(f'{who}: {config["type"]!r} makes a {type(module).__name__}, not a torch module')
    return module
