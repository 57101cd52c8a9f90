"""ActivationCheckpointHook: activation checkpointing that keeps the gradient of taps inside."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from mmengine.hooks import Hook
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..contexts import saved_buffers
from ..registry import HOOKS
from .distillation import distiller_of


@HOOKS.register_module()
class ActivationCheckpointHook(Hook):
    """Recomputes modules of the student in the backward pass instead of keeping their activations.

    In torch's reentrant variant, which the hosts' ``with_cp=True`` and mmengine's ``activation_checkpointing`` use, a
    tap inside a checkpointed module has no gradient; here, with ``use_reentrant=False``, it has. Losses, gradients and
    BatchNorm's running statistics are those of training without the hook.

    Args:
        modules: paths in the student, such as ``['backbone.layer1', 'backbone.layer2']``.
    Raises:
        ValueError: a path that the student does not have.
    Example: ``custom_hooks = [dict(type='lckd_mm.ActivationCheckpointHook', modules=['backbone.layer1'])]``
    """

    def __init__(self, modules: Sequence[str]):
        self.modules = [modules] if isinstance(modules, str) else list(modules)
        self._wrapped: list[nn.Module] = []

    def before_train(self, runner) -> None:
        student = distiller_of(runner, 'ActivationCheckpointHook').student
        found = dict(student.named_modules())
        for path in self.modules:
            if path not in found:
                raise ValueError(f'ActivationCheckpointHook: no module {path!r} in the {type(student).__name__}')
            module = found[path]
            if 'forward' not in module.__dict__:
                module.forward = _checkpointed(module, module.forward)
                self._wrapped.append(module)

    def after_train(self, runner) -> None:
        for module in self._wrapped:
            del module.forward
        self._wrapped = []


def _checkpointed(module: nn.Module, forward: Callable) -> Callable:
    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        contexts = lambda: (contextlib.nullcontext(), _kept_buffers(module))  # noqa: E731
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


@contextlib.contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[None]:
    restore = saved_buffers(module)
    try:
        yield
    finally:
        restore()
