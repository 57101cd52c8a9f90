"""Modules: what kind one is, whether it is compiled, and hooks that read what goes in and what comes out."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..contexts import switched


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation of torch or mmcv."""
    kind = type(module)
    # mmcv's own activations (Swish, HSwish, Clip, …) share no base class with torch's.
    return kind.__module__.startswith(('torch.nn.modules.activation', 'mmcv.cnn.bricks')) and kind.__name__ in {
        *(set(torch.nn.modules.activation.__all__) - {'MultiheadAttention'}),
        *('Swish', 'HSwish', 'HSigmoid', 'Clamp'),
    }


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer."""
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    return isinstance(module, kinds) or 'Norm' in type(module).__name__


def watch_output(module: nn.Module, see: Callable[[Any], None]) -> RemovableHandle:
    """Call ``see`` on each output of the module; the handle, also as a context manager, ends it."""
    return module.register_forward_hook(lambda _, args, output: see(output))


def watch_input(module: nn.Module, see: Callable[[Any], None]) -> RemovableHandle:
    """Call ``see`` on the first input of each call, positional or by keyword; as :func:`watch_output`."""

    def hook(_, args: tuple, kwargs: dict) -> None:
        see(args[0] if args else next(iter(kwargs.values()), None))

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def not_inplace(modules: Iterable[nn.Module]) -> contextlib.AbstractContextManager:
    """Switch ``inplace`` off: an in-place activation would overwrite the input being read."""
    return switched([m for m in modules if getattr(m, 'inplace', False) is True], 'inplace', False)


def compiled_around(model: nn.Module, path: str) -> str | None:
    """Path of the innermost compiled module whose compiled code contains the module at ``path``; '' is the model."""
    found, module, walked = None, model, []
    for part in [*path.split('.'), None]:
        # The wrapper that torch.compile returns calls its own hooks itself; a module compiled in place does not.
        wrapper = '_orig_mod' in module._modules
        if (wrapper and part is not None) or module._compiled_call_impl is not None:
            found = '.'.join(walked)
        if part is None:
            break
        module = getattr(module, part, None)
        if not isinstance(module, nn.Module):
            break
        walked.append(part)
    return found
