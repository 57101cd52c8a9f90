"""Torch modules of no host: built from an import path, and run by a plain forward."""

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import one_line
from .models import host_of

#: What a checkpoint is called that the function of ``module`` loads itself.
AS_BUILT = 'as built'
#: The same, as --cfg-options hands it on.
_AS_TYPED = AS_BUILT.replace(' ', '')
_EXAMPLE = "module='torchvision.models.resnet50'"


def build_module(module: str | Callable, args: Mapping | None, who: str) -> nn.Module:
    """Call a class or function that makes a torch module.

    Args:
        module: it, or its import path, such as ``'timm.create_model'``. args: its keyword arguments.
    Raises:
        ModuleNotFoundError: a package that is not installed. TypeError: it makes no torch module, or one of a host.
        ValueError: no such path, a call that fails, or a module without parameters.
    """
    if not isinstance(args or {}, Mapping):
        raise TypeError(f'{who}: args must be a dict of keyword arguments, got {type(args).__name__} {args!r}')
    made = _called(module, _plain(args or {}), who)
    if not isinstance(made, nn.Module):
        raise TypeError(f'{who}: module={module!r} makes a {type(made).__name__}, not a torch module')
    if host_of(made) is not None:
        raise TypeError(f'{who}: {type(made).__name__} is a model of {host_of(made)}; write model=, not module=')
    if not any(True for _ in made.parameters()):
        raise ValueError(f'{who}: {type(made).__name__} has no parameters, so it can teach nothing')
    return made


def _plain(value: Any) -> Any:
    """A config's value with plain dicts; what a pure-Python config imports is there, to_dict() would give its name."""
    if isinstance(value, Mapping):
        return {key: _plain(of) for key, of in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _called(module: str | Callable, args: dict[str, Any], who: str) -> Any:
    make = module
    if isinstance(module, str):
        try:
            make = pkgutil.resolve_name(module)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f'{who}: module={module!r} needs the package {error.name!r}, which is not installed', name=error.name
            ) from None
        except (AttributeError, ValueError, ImportError) as error:
            raise ValueError(
                f'{who}: module={module!r} is no import path ({one_line(error)}), as is {_EXAMPLE}'
            ) from None
    if not callable(make):
        raise TypeError(
            f'{who}: module={module!r} is a {type(make).__name__}; name a class or function, as in {_EXAMPLE}'
        )
    try:
        return make(**args)
    except Exception as error:  # it may raise anything
        raise ValueError(f'{who}: module={module!r} fails with args={args!r}: {one_line(error)}') from error


def as_built(checkpoint: Any) -> bool:
    """Whether a teacher's checkpoint says that the function of ``module`` loads its weights itself."""
    return checkpoint in (AS_BUILT, _AS_TYPED)


class ModuleForward(nn.Module):
    """A torch module under the plain forward of a host's model; of several outputs, those that are tensors."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor') -> Any:
        given = self.module(inputs)
        return tuple(v for v in given.values() if isinstance(v, Tensor)) if isinstance(given, Mapping) else given


def forward(model: nn.Module, images: Tensor, data_samples: list | None, mode: str) -> Any:
    """One forward of a host's model in this mode; a module of no host is called with the images alone."""
    return model(images) if host_of(model) is None else model(images, data_samples, mode=mode)
