"""Context managers that restore random states, modes and statistics on exit; own random numbers."""

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from torch import Tensor, nn


@contextlib.contextmanager
def preserved_rng(
    seed: int | None = None,
    state: tuple[Tensor, Tensor | None] | None = None,
    device: torch.device | None = None,
) -> Iterator[None]:
    """Restore the random states of Python, numpy and torch (``device``, by default every device in use) on exit.

    Inside, torch starts from ``seed`` or from ``state`` (of the CPU and of the current GPU, or None), if given.
    """
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    if device is not None:
        devices = [device] if device.type == 'cuda' else []
    try:
        with torch.random.fork_rng(devices):
            if seed is not None:
                torch.default_generator.manual_seed(seed % 2**63)
            if state is not None:
                torch.set_rng_state(state[0])
                if state[1] is not None:
                    torch.cuda.set_rng_state(state[1])
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the random numbers of Python, numpy and torch (on the CPU) start from ``seed``, below 2**32."""
    with preserved_rng(seed, device=torch.device('cpu')):
        random.seed(seed)
        np.random.seed(seed)
        yield


def saved_buffers(model: nn.Module) -> Callable[[], None]:
    """Copy a model's buffers; the function returned puts them back."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]

    @torch.no_grad()
    def restore() -> None:
        for buffer, value in saved:
            buffer.copy_(value)

    return restore


def saved_state(model: nn.Module) -> Callable[[], None]:
    """As :func:`saved_buffers`, with the modules' plain attributes, and buffers that a forward pass replaces.

    A net such as EVA-02 replaces its positions, and notes their number, where images have another size.
    """
    modules, values = [(m, dict(m._buffers), dict(vars(m))) for m in model.modules()], saved_buffers(model)

    def restore() -> None:
        values()
        for module, buffers, attributes in modules:
            module._buffers.update(buffers)
            vars(module).update((k, v) for k, v in attributes.items() if isinstance(v, (int, float, str, tuple)))

    return restore


@contextlib.contextmanager
def switched(modules: Iterable[nn.Module], name: str, value: bool) -> Iterator[None]:
    """Set an attribute of the modules; restore each module's own on exit."""
    before = {module: getattr(module, name) for module in modules}
    for module in before:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, own in before.items():
            setattr(module, name, own)


def untracked_statistics(model: nn.Module) -> contextlib.AbstractContextManager:
    """BatchNorm layers in training mode use batch statistics and do not update their running ones."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return switched([m for m in norms if m.training and m.track_running_stats], 'track_running_stats', False)


@contextlib.contextmanager
def eval_mode(model: nn.Module, gradient: bool = False) -> Iterator[None]:
    """Switch to eval mode without gradient; restore every module's own mode on exit.

    With ``gradient``, gradients are enabled and parameters require them as in training.
    """
    with switched(model.modules(), 'training', False), torch.set_grad_enabled(gradient):
        if gradient:
            # Some backbones freeze their first stages only in train().
            model.train()
        model.eval()
        yield


def training_branches(model: nn.Module, enter: bool = True) -> contextlib.AbstractContextManager:
    """Let a model in eval mode take the branches of training, such as heads that only training runs.

    Modules with submodules are switched, except torch's own; the layers inside (BatchNorm, dropout) stay as they are.
    """
    branching = [m for m in model.modules() if any(m.children()) and not type(m).__module__.startswith('torch.')]
    return switched(branching if enter else [], 'training', True)


class Moment:
    """The current autocast and random states, so that a forward pass that starts now can be repeated."""

    def __init__(self, device: torch.device):
        self.kind = device.type
        self.precision = torch.get_autocast_dtype(self.kind), torch.is_autocast_enabled(self.kind)
        self.state = torch.get_rng_state(), torch.cuda.get_rng_state(device) if self.kind == 'cuda' else None

    @contextlib.contextmanager
    def again(self, net: nn.Module) -> Iterator[None]:
        """Repeat a pass of ``net`` without changing its BatchNorm statistics or the random states."""
        with (
            preserved_rng(state=self.state),
            untracked_statistics(net),
            torch.autocast(self.kind, *self.precision),
        ):
            yield


@contextlib.contextmanager
def wrapped_forward(module: nn.Module, around: Callable[..., Any]) -> Iterator[None]:
    """Inside the ``with``, the module's forward, also if called directly, is ``around(its own, *args, **kwargs)``."""
    kept = vars(module).get('forward')
    module.forward = partial(around, module.forward)
    try:
        yield
    finally:
        del module.forward
        if kept is not None:
            module.forward = kept


def computes_in_bfloat16(device: str) -> bool:
    """Whether a kind of device, such as 'cpu', has instructions for bfloat16 rather than an emulation.

    On CPUs torch's own query for oneDNN, which x86 meets with AVX-512 alone, and there AVX512_BF16 or AMX in addition.
    """
    if device == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != 'cpu':
        return True
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    return torch.cpu._is_avx512_bf16_supported() or not torch.cpu._is_avx512_supported()


def own_generator(draws: Tensor, device: torch.device) -> torch.Generator:
    """A generator for a loss or a connector, seeded anew for each call and each rank; the training's are untouched.

    Args:
        draws: a counter, incremented in place; a buffer of the module, so that a resumed run draws new numbers.
    """
    draws += 1
    seed = torch.initial_seed() + int(draws) + 1_000_003 * get_rank()
    return torch.Generator(device).manual_seed(seed % 2**63)
