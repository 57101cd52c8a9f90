"""AutocastOptimWrapper: bfloat16 autocast on any device, the CPU included."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from .registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Mixed precision by autocast to bfloat16, also on the CPU, where mmengine's AmpOptimWrapper refuses to run.

    bfloat16 has the range of float32, so no loss scaling is needed. Weights, gradients, the optimizer's state and
    distillation terms stay in float32. On a CPU this is faster only with AMX or AVX512-BF16; other CPUs emulate
    bfloat16 products and are slower.

    Args:
        kwargs: as for OptimWrapper.
    Example:
        optim_wrapper=dict(
            type='lckd_mm.AutocastOptimWrapper', optimizer=dict(type='SGD', lr=0.01)
        )
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield
