"""Random numbers of a loss or a connector, independent of the training's."""

import torch
from mmengine.dist import get_rank
from torch import Tensor


def own_generator(draws: Tensor, device: torch.device) -> torch.Generator:
    """A generator seeded anew for each call and each rank; it leaves the training's random state untouched.

    Args:
        draws: a counter, incremented in place; a buffer of the module, so that a resumed run draws new numbers.
    """
    draws += 1
    seed = torch.initial_seed() + int(draws) + 1_000_003 * get_rank()
    return torch.Generator(device).manual_seed(seed % 2**63)
