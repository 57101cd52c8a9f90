"""Random states, modes and statistics that are as before once a ``with`` is left."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

RNGState = tuple[Tensor, Tensor | None]


def rng_state(device: torch.device) -> RNGState:
    """torch's random states of the CPU and, where it is an accelerator, of ``device``."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == 'cuda' else None


@contextlib.contextmanager
def preserved_rng(
    seed: int | None = None, state: RNGState | None = None, device: torch.device | None = None
) -> Iterator[None]:
    """Restore the random states of Python, numpy and torch (every device in use, or this one) on leaving.

    Inside, torch is seeded by ``seed``, or put into ``state`` (of :func:`rng_state`).
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
def untracked_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm layers in training use the batch's statistics inside, and leave the running ones as they are."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextlib.contextmanager
def eval_mode(model: nn.Module, gradient: bool = False) -> Iterator[None]:
    """Switch to evaluation, without gradient, and give every module its own mode back on leaving.

    With ``gradient``, parameters have it as in training.
    """
    training = {module: module.training for module in model.modules()}
    if gradient:
        # Some backbones freeze their first stages only here.
        model.train()
    model.eval()
    try:
        with torch.set_grad_enabled(gradient):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


class Moment:
    """Autocast and random states as they are now, so that a forward pass that begins here can be run again."""

    def __init__(self, device: torch.device):
        self.kind = device.type
        self.precision = torch.get_autocast_dtype(self.kind), torch.is_autocast_enabled(self.kind)
        self.state = rng_state(device)

    @contextlib.contextmanager
    def again(self, net: nn.Module) -> Iterator[None]:
        """For another pass of this net, of which nothing is left in it or in the random numbers."""
        with (
            preserved_rng(state=self.state),
            untracked_statistics(net),
            torch.autocast(self.kind, *self.precision),
        ):
            yield
