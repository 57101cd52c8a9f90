"""Launchers: distributed runs without GPUs, also on Slurm, and a check that refuses to split the model."""

import os
import subprocess
from typing import Any

import torch
from mmengine._strategy import DDPStrategy, SingleDeviceStrategy
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS, STRATEGIES


def prepare_launch(cfg: Config) -> None:
    """Make a distributed run possible without GPUs: gloo, DDP without devices, BatchNorm in place of SyncBN.

    mmengine's own launchers set a CUDA device in each process. Without GPUs the process group is created here, and the
    Runner uses it.
    """
    if cfg.launcher == 'none' or torch.cuda.is_available():
        return
    if cfg.launcher == 'mpi':
        raise ValueError('--launcher mpi: without GPUs, use pytorch or slurm')
    if cfg.launcher == 'slurm':
        _slurm_environment()
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'LOCAL_RANK'):
        if name not in os.environ:
            raise ValueError(
                f'--launcher {cfg.launcher}: the environment has no {name}; start it with '
                f'tools/{"slurm" if cfg.launcher == "slurm" else "dist"}_train.sh'
            )
    check_parallelism(cfg, 'without GPUs there is DDP alone')
    torch.distributed.init_process_group(backend='gloo')
    cfg.model_wrapper_cfg = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        **(cfg.get('model_wrapper_cfg') or {}),
        'device_ids': None,
    }
    # SyncBN works only on GPUs.
    replace_sync_bn(cfg.model)


def check_parallelism(cfg: Config, reason: str) -> None:
    """Raise ValueError for a wrapper or strategy that shards, splits or renames the model, unlike DDP or one device."""
    refused = 'shards, splits or renames the model, and'
    wrapper = _named(cfg.get('model_wrapper_cfg'), MODEL_WRAPPERS)
    if wrapper is not None and not issubclass(wrapper, MMDistributedDataParallel):
        raise ValueError(
            f'model_wrapper_cfg: {wrapper.__name__} {refused} {reason}; take model_wrapper_cfg away, to train by DDP'
        )
    strategy = _named(cfg.get('strategy'), STRATEGIES)
    if cfg.get('runner_type') == 'FlexibleRunner' and cfg.launcher != 'none':
        strategy = strategy or DDPStrategy  # FlexibleRunner's default; its checkpoints' keys start with 'module.'
    if strategy is not None and strategy is not SingleDeviceStrategy:
        raise ValueError(
            f'strategy: {strategy.__name__} {refused} {reason}; take strategy and runner_type away, to train by DDP'
        )


def _named(config: Any, registry: Any) -> type | None:
    kind = config.get('type') if isinstance(config, dict) else None
    return registry.get(kind) if isinstance(kind, str) else kind


def _slurm_environment() -> None:
    if 'SLURM_PROCID' not in os.environ:
        raise ValueError('--launcher slurm: not inside a Slurm job; start it with tools/slurm_train.sh')
    os.environ.setdefault('RANK', os.environ['SLURM_PROCID'])
    os.environ.setdefault('WORLD_SIZE', os.environ['SLURM_NTASKS'])
    os.environ.setdefault('LOCAL_RANK', os.environ.get('SLURM_LOCALID', '0'))
    if 'MASTER_ADDR' not in os.environ:
        nodes = os.environ.get('SLURM_STEP_NODELIST') or os.environ['SLURM_NODELIST']
        names = subprocess.run(['scontrol', 'show', 'hostnames', nodes], check=True, capture_output=True, text=True)
        os.environ['MASTER_ADDR'] = names.stdout.split()[0]
    # Two jobs on a node must not use the same port.
    os.environ.setdefault('MASTER_PORT', str(20000 + int(os.environ.get('SLURM_JOB_ID', '0')) % 20000))


def replace_sync_bn(node: Any) -> None:
    """Replace SyncBN by BatchNorm everywhere in a model dict, in place."""
    if isinstance(node, dict):
        if node.get('type') in ('SyncBN', 'MMSyncBN'):
            node['type'] = 'BN'
        for value in node.values():
            replace_sync_bn(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            replace_sync_bn(value)
