"""A loss that goes wrong on demand, and what is needed to train with it in several processes."""

import os

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from torch import nn

from lckd_mm.registry import HOOKS, MODELS


@MODELS.register_module()
class PoisonLoss(nn.Module):
    """A mean squared distance, but at the calls of ``at`` (from 1, in training) nan, or finite without a derivative."""

    def __init__(self, at=(), how='value', rank=None):
        super().__init__()
        self.at, self.how, self.calls = tuple(at), how, 0
        self.here = rank is None or rank == int(os.environ.get('RANK', 0))

    def forward(self, student, teacher):
        self.calls += self.training
        distance = (student - teacher).square().mean()
        if not self.training or self.calls not in self.at or not self.here:
            return distance
        if self.how == 'value':
            return distance * torch.nan
        # 0, whose root has an infinite derivative, times the derivative 0 of the square.
        return distance + (student - student.detach()).square().sum().sqrt()


def state_of(runner):
    """Copies of weights, connectors, statistics and the optimizer's state."""
    model = runner.model.module if hasattr(runner.model, 'module') else runner.model
    tensors = [*model.named_parameters(), *model.named_buffers()]
    optimizer = runner.optim_wrapper.optimizer
    for i, state in enumerate(optimizer.state.values()):
        tensors += [(f'optimizer.{i}.{key}', value) for key, value in state.items() if torch.is_tensor(value)]
    return {name: tensor.detach().clone() for name, tensor in tensors}


@HOOKS.register_module()
class States(Hook):
    """The state after each iteration; ``[0]`` is that before the first."""

    def __init__(self):
        self.states = []

    def before_train(self, runner):
        self.states.append(state_of(runner))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append(state_of(runner))


def train_rank(rank, port, config, work_dir):
    """One of two processes; writes its states, or what it raised."""
    from mmengine.runner import Runner

    from lckd_mm.distillation import NonFiniteError

    os.environ.update(RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank), MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    torch.distributed.init_process_group('gloo')
    cfg = Config.fromfile(config)
    cfg.launcher = 'pytorch'
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    runner, states = Runner.from_cfg(cfg), States()
    runner.register_hook(states, priority='LOWEST')
    raised = ''
    try:
        runner.train()
    except NonFiniteError as error:
        raised = str(error)
    torch.save(dict(raised=raised, states=states.states), f'{work_dir}/rank{rank}.pth')
    torch.distributed.destroy_process_group()
