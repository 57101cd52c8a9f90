"""Several optimizers for nets that learn together: building them, and training with them on several ranks."""

import contextlib
from typing import Any

from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from torch import Tensor, nn

from ..hosts import unwrapped
from ..registry import MODEL_WRAPPERS, OPTIM_WRAPPER_CONSTRUCTORS
from .online import CRITICS, NETS, OnlineDistiller


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OnlineOptimWrapperConstructor:
    """Builds the named optimizers of an :class:`OnlineDistiller`, each from its own config.

    ``optim_wrapper=dict(constructor='lckd_mm.OnlineOptimWrapperConstructor', nets=dict(optimizer=…), critics=…)``;
    each may have ``type``, ``optimizer``, ``paramwise_cfg``, ``clip_grad``, ``accumulative_counts``, ``constructor``.

    Raises:
        ValueError: no ``nets``, a step of the model without an optimizer, an unknown name, or nothing to train.
        TypeError: the model is not an OnlineDistiller.
    Example:
        optim_wrapper=dict(
            constructor='lckd_mm.OnlineOptimWrapperConstructor',
            nets=dict(optimizer=dict(type='SGD', lr=0.05)),
            critics=dict(optimizer=dict(type='Adam', lr=1e-4)),
        )
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        if paramwise_cfg is not None:
            raise ValueError('OnlineOptimWrapperConstructor: write paramwise_cfg inside nets=dict(…) and the others')
        self.configs = {name: cfg for name, cfg in optim_wrapper_cfg.items() if name != 'type' and cfg is not None}

    def __call__(self, model: nn.Module) -> OptimWrapperDict:
        model = unwrapped(model)
        if not isinstance(model, OnlineDistiller):
            raise TypeError(f'OnlineOptimWrapperConstructor: the model is a {type(model).__name__}, no OnlineDistiller')
        needed, known = {NETS, *model.steps}, {NETS, CRITICS, *model.steps}
        if not needed <= set(self.configs) <= known:
            raise ValueError(
                f'optim_wrapper: the optimizers are {", ".join(self.configs) or "none"}, but this OnlineDistiller '
                f'needs {", ".join(sorted(needed))}, and takes {CRITICS} beside them'
            )
        wrappers = {}
        for name, config in self.configs.items():
            trained = model.trained_by(name, list(self.configs))
            if not any(True for _ in trained.parameters()):
                raise ValueError(f'optim_wrapper: {name!r} has nothing to train: no loss has modules of its own')
            wrappers[name] = build_optim_wrapper(trained, config)
        return OptimWrapperDict(**wrappers)


@MODEL_WRAPPERS.register_module()
class OnlineDataParallel(MMDistributedDataParallel):
    """Lets an :class:`OnlineDistiller` with several optimizers train on several ranks.

    The model's ``train_step`` averages the gradients itself. DDP's own reducer, which expects one backward pass per
    forward pass, is not set up. DDP's arguments are accepted and ignored.

    Example:
        model_wrapper_cfg=dict(type='lckd_mm.OnlineDataParallel')
    """

    def __init__(self, module: nn.Module, **_: Any):
        nn.Module.__init__(self)
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        if not isinstance(optim_wrapper, OptimWrapperDict):
            raise ValueError(
                'OnlineDataParallel: one optimizer is trained by MMDistributedDataParallel; take model_wrapper_cfg '
                "away, or give optim_wrapper constructor='lckd_mm.OnlineOptimWrapperConstructor'"
            )
        return self.module.train_step(data, optim_wrapper)

    def train(self, mode: bool = True) -> 'OnlineDataParallel':
        return nn.Module.train(self, mode)

    @contextlib.contextmanager
    def no_sync(self):
        yield
