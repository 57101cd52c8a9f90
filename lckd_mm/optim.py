"""AutocastOptimWrapper: bfloat16 where there is no accelerator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from .registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Mixed precision by autocast to bfloat16, on the CPU too, where mmengine's AmpOptimWrapper refuses to run.

    bfloat16 has the range of float32, so that no gradient is scaled. Weights, gradients and the optimizer's state are
    in float32, and so are distillation terms. Whether it is faster depends on the processor: those with AMX or
    AVX512-BF16 have products of bfloat16, others imitate them and are slower.

    Args:
        kwargs: as OptimWrapper's.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield
