"""Launchers: distributed runs without GPUs, also on Slurm, and a check that refuses to split the model."""

import os
import subprocess
from typing import Any

import torch
from mmengine._strategy import DDPStrategy, SingleDeviceStrategy
from mmengine.config import Config, ConfigDict
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS, STRATEGIES

from ..registry import resolved, type_name


def prepare_launch(cfg: Config) -> None:
    """Make a distributed run possible without GPUs: gloo, DDP without devices, BatchNorm in place of SyncBN.

    mmengine's own launchers set a CUDA device in each process. Without GPUs the process group is created here, and the
    Runner uses it.
    """
    if cfg.launcher == 'none' or torch.cuda.is_available():
        return
    if cfg.launcher == 'slurm':
        _slurm_environment()
    if 'RANK' not in os.environ:
        script = 'slurm_train.sh' if cfg.launcher == 'slurm' else 'dist_train.sh'
        raise ValueError(f'--launcher {cfg.launcher}: no RANK in the environment; start it with tools/{script}')
    check_parallelism(cfg, 'without GPUs there is DDP alone')
    torch.distributed.init_process_group(backend='gloo')
    wrapper = ConfigDict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    wrapper.update(cfg.get('model_wrapper_cfg') or {}, device_ids=None)
    cfg.model_wrapper_cfg = wrapper
    # SyncBN works only on GPUs.
    replace_sync_bn(cfg.model)


def check_parallelism(cfg: Config, reason: str) -> None:
    """Raise ValueError for a wrapper or strategy that shards, splits or renames the model, unlike DDP or one device."""
    wrapper = _named(cfg.get('model_wrapper_cfg'), MODEL_WRAPPERS) or MMDistributedDataParallel
    strategy = _named(cfg.get('strategy'), STRATEGIES) or SingleDeviceStrategy
    if type_name(cfg.get('runner_type')) == 'FlexibleRunner' and cfg.launcher != 'none' and cfg.get('strategy') is None:
        strategy = DDPStrategy  # FlexibleRunner's default; its checkpoints' keys start with 'module.'
    for key, kind, fits in (
        ('model_wrapper_cfg', wrapper, issubclass(wrapper, MMDistributedDataParallel)),
        ('strategy', strategy, strategy is SingleDeviceStrategy),
    ):
        if not fits:
            raise ValueError(
                f'{key}: {kind.__name__} shards, splits or renames the model, and {reason}; remove {key} and '
                'runner_type to train with DDP'
            )


def _named(config: Any, registry: Any) -> type | None:
    kind = config.get('type') if isinstance(config, dict) else None
    return resolved(kind, registry)


def _slurm_environment() -> None:
    if 'SLURM_PROCID' not in os.environ:
        return
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
        if type_name(node.get('type')) in ('SyncBN', 'MMSyncBN', 'SyncBatchNorm'):
            node['type'] = 'BN'
        for value in node.values():
            replace_sync_bn(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            replace_sync_bn(value)
