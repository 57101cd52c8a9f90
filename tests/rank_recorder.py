"""What a run under torchrun is seen by: a hook that each rank writes a file with, imported by a config."""

import os
import sys
from collections import Counter

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor, nn

from lckd_mm.connectors import Connector
from lckd_mm.registry import MODELS

OPENED: Counter[str] = Counter()


# An audit hook cannot be taken away again, so only in a rank's own process.
def _count(event: str, arguments: tuple) -> None:
    if event == 'open' and isinstance(arguments[0], (str, bytes, os.PathLike)):
        OPENED[os.path.basename(os.fsdecode(arguments[0]))] += 1


if 'RANK' in os.environ:
    sys.addaudithook(_count)
    load = torch.load

    def _load(file, *args, **kwargs):
        # Opening is not loading: a checkpoint's checksums are read first.
        OPENED[f'loaded {os.path.basename(str(file))}'] += 1
        return load(file, *args, **kwargs)

    torch.load = _load


@HOOKS.register_module()
class RankRecorder(Hook):
    """Writes ``rank<N>.pth`` to the work_dir: weights, connectors, the images of each iteration, files read."""

    priority = 'LOWEST'

    def __init__(self):
        self.images: list[list[str]] = []
        self.started: dict[str, Tensor] = {}
        self.before: dict[str, int] = {}

    def before_train(self, runner) -> None:
        self.before = dict(OPENED)

    def before_train_iter(self, runner, batch_idx: int, data_batch: dict | None = None) -> None:
        if not self.images:
            self.started = self._state(runner)
        self.images.append([os.path.basename(sample.img_path) for sample in data_batch['data_samples']])

    def after_train(self, runner) -> None:
        wrapped = is_model_wrapper(runner.model)
        record = dict(
            started=self.started,
            state=self._state(runner),
            images=self.images,
            before=self.before,
            opened=dict(OPENED),
            wrapper=type(runner.model).__name__ if wrapped else '',
            find_unused_parameters=bool(wrapped and runner.model.find_unused_parameters),
        )
        torch.save(record, os.path.join(runner.work_dir, f'rank{get_rank()}.pth'))

    @staticmethod
    def _state(runner) -> dict[str, Tensor]:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        state = {f'student.{k}': v for k, v in model.student.state_dict().items()}
        state |= {f'terms.{k}': v for k, v in model.terms.state_dict().items()}
        return {k: v.detach().clone() for k, v in state.items()}


@MODELS.register_module()
class PlainConnector(Connector, nn.Conv2d):
    """A 1x1 convolution: a connector without BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        return super().forward(x)
