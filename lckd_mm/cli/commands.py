"""What tools/train.py and tools/test.py share: arguments, checks before the work starts, short errors."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from ..errors import one_sentence
from ..hosts import build_model, load_config, unwrapped
from ..storage.checkpoint import STATE_KEY, check_loading, load_strictly
from ..storage.files import good_sibling, newest_good, read_checkpoint, read_resumable, save_whole, trust
from .launch import check_parallelism, prepare_launch

_MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
# What train() adds by itself.
_OWN_HOOKS = {
    'resume': 'lckd_mm.ResumeHook',
    'distillation': 'lckd_mm.DistillationHook',
    'non_finite': 'lckd_mm.NonFiniteHook',
}
DISTILLER = ('lckd_mm.Distiller', 'Distiller')
ONLINE = ('lckd_mm.OnlineDistiller', 'OnlineDistiller')
ONLINE_CONSTRUCTOR = ('lckd_mm.OnlineOptimWrapperConstructor', 'OnlineOptimWrapperConstructor')
_DATA_HINTS = {
    'digit_scenes': 'write it with: python tools/prepare_data.py digit-scenes',
    'SegmentationClassAug': 'convert SBD with: python tools/prepare_data.py sbd SBD_ROOT data/VOCdevkit/VOC2012',
    'VOC': "unpack PASCAL VOC's trainval archive there (README.md, section Data)",
}


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that every OpenMMLab tool has."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument('config', help='path of a config file')
    p.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<name of the config>)')
    p.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override config values, e.g. model.terms.loss_kd.weight=0.5',
    )
    p.add_argument(
        '--trust-checkpoint',
        action='append',
        default=[],
        metavar='FILE',
        help='read this file, as named in the config or here, with full pickle: it can then run any code with your '
        'account (default: tensors and plain values only); may be given again',
    )
    p.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    p.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    return p


def run_tool(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run a tool; an error becomes one sentence on stderr and exit status 1, with ``--debug`` a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        main(argv)
        if torch.distributed.is_initialized():
            # Together: a rank that ends while another still talks to it can be ended by gloo's threads, status and all.
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except Exception as error:
        if '--debug' in argv:
            raise
        print(f'error: {one_sentence(error)}', file=sys.stderr)
        return 1
    return 0


def option_path(path: Path, flag: str) -> str:
    """A file's path that ``--cfg-options`` hands on as it is; if need be, relative to where we are.

    Raises:
        ValueError: it holds what mmengine takes out of values of options, or cuts them at.
    """
    lost = re.compile(r'[\s,\'"()\[\]]')
    if lost.search(str(path)):
        with contextlib.suppress(ValueError):
            path = path.absolute().relative_to(Path.cwd())
    if lost.search(str(path)):
        raise ValueError(
            f'{str(path)!r}: spaces, commas, quotes and brackets in a path do not survive --cfg-options; give another '
            f'{flag}'
        )
    return str(path)


def read_config(args: argparse.Namespace) -> Config:
    """The config with the command line's overrides, its work_dir set, and checked for what a run needs."""
    if '::' not in args.config and not Path(args.config).is_file():
        raise FileNotFoundError(f'no config file {args.config!r}; those of this project are in configs/')
    for file in getattr(args, 'trust_checkpoint', ()):
        trust(file)
    cfg = load_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    # mmengine takes None for its own default hooks only; an inherited one of ours goes away with None as well.
    kept = (*_MMENGINE_HOOKS, *_OWN_HOOKS)  # train() adds the latter unless they are None
    for name in [k for k, v in cfg.get('default_hooks', {}).items() if v is None and k not in kept]:
        del cfg.default_hooks[name]
    if not isinstance(cfg.get('model'), dict) or 'type' not in cfg.model:
        raise KeyError(f'config {args.config!r} defines no `model` with a type; inherit a baseline with _base_')
    if not isinstance(cfg.get('default_scope') or 'mmengine', str):
        raise ValueError(
            f'config {args.config!r}: default_scope must be a text such as mmseg, got {cfg.default_scope!r}'
        )
    return cfg


def is_distillation(cfg: Config) -> bool:
    return cfg.model.type in (*DISTILLER, *ONLINE)


def is_online(cfg: Config) -> bool:
    """Whether several nets learn together, so that there is no teacher."""
    return cfg.model.type in ONLINE


def has_teacher(cfg: Config) -> bool:
    return is_distillation(cfg) and not is_online(cfg)


def student_config(cfg: Config, net: int = 0) -> Config:
    """The config of the student alone: no Distiller, none of this package's hooks, so that plain tools can test it.

    ``net``: which one, of nets that learn together.
    """
    nets = len(cfg.model.nets) if is_online(cfg) else 1
    if not 0 <= net < nets:
        raise ValueError(f'--net {net}: the config has {f"nets 0 to {nets - 1}" if nets > 1 else "one net alone"}')
    cfg = Config(cfg._cfg_dict.to_dict(), filename=cfg.filename) if is_distillation(cfg) else cfg
    if is_distillation(cfg):
        cfg.model = ConfigDict(cfg.model.nets[net] if is_online(cfg) else cfg.model.student)
    own = lambda hook: isinstance(hook, dict) and str(hook.get('type', '')).startswith('lckd_mm.')  # noqa: E731
    cfg.default_hooks = {k: v for k, v in cfg.get('default_hooks', {}).items() if not own(v) and k not in _OWN_HOOKS}
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if not own(hook)]
    return cfg


def plain_model(cfg: Config, net: int = 0) -> nn.Module:
    """The model of a config, or of a distillation config the student alone, built and not initialised."""
    model = student_config(cfg, net).model
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return build_model(model)


def input_size(cfg: Config, model: nn.Module) -> tuple[int, int]:
    """Height and width of the images that a config trains on.

    The first of: its ``dry_run_size``, what the preprocessor pads to, the last crop or resize to a fixed size of the
    training pipeline, what CIFAR and the digits have, 224.
    """
    size = cfg.model.get('dry_run_size') if is_distillation(cfg) else None
    size = size or getattr(model.data_preprocessor, 'size', None)
    if size is None:
        dataset = next(_datasets((cfg.get('train_dataloader') or {}).get('dataset')), {})
        for step in dataset.get('pipeline') or []:
            wanted = step.get('crop_size') or (step.get('scale') if step.get('type') == 'Resize' else None)
            if isinstance(wanted, int) or (isinstance(wanted, (list, tuple)) and len(wanted) == 2):
                # Scales are (width, height), crops (height, width).
                size = wanted if 'crop_size' in step or isinstance(wanted, int) else wanted[::-1]
        if size is None:
            kind = str(dataset.get('type'))
            size = 32 if 'CIFAR' in kind else dataset.get('size', 16) if kind.endswith('Digits') else 224
    return (size, size) if isinstance(size, int) else tuple(size)


def train(argv: list[str]) -> None:
    """``tools/train.py``."""
    p = parser('Train a model, or distil one where the config says so')
    p.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint; without a value, from the last one in the work_dir',
    )
    p.add_argument('--amp', action='store_true', help='automatic mixed precision in float16 (needs a GPU)')
    p.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    args = p.parse_args(argv)
    cfg = read_config(args)
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError('--auto-scale-lr: the config has no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    if is_distillation(cfg):
        check_parallelism(cfg, 'a Distiller taps the features and stores the weights of a whole student')
        check_teacher_file(cfg)
        if cfg.get('optim_wrapper', {}).get('constructor') in ONLINE_CONSTRUCTOR:
            cfg.setdefault('model_wrapper_cfg', dict(type='lckd_mm.OnlineDataParallel'))
    add_hooks(cfg)
    loaded, notes = choose_start(cfg, args.resume)
    prepare_launch(cfg)
    runner = build_runner(cfg)
    if cfg.get('compile') and is_distillation(cfg):
        notes.append(
            'compile: student and teacher run uncompiled under a Distiller, since taps read nothing inside compiled '
            'code; what is around them is compiled'
        )
    for note in notes:
        runner.logger.warning(note)
    check_start(runner, loaded)
    del loaded  # as large as weights, averages and the optimizer's state together
    runner.train()


def test(argv: list[str]) -> None:
    """``tools/test.py``: the student alone, loaded strictly."""
    p = parser('Test a checkpoint; of a distillation config, the student alone')
    p.add_argument('checkpoint', help='path of a checkpoint')
    p.add_argument('--out', help='write the metrics to this JSON file')
    p.add_argument('--net', type=int, default=0, help='which of the nets that learn together the checkpoint holds')
    p.add_argument('--dump', metavar='FILE.pkl', help="write every sample's truth and prediction to this file")
    args = p.parse_args(argv)
    if args.dump and not args.dump.endswith('.pkl'):
        raise ValueError(f'--dump: the file must end in .pkl, got {args.dump!r}')
    cfg = student_config(read_config(args), args.net)
    if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f'no checkpoint at {args.checkpoint!r}')
    for key in ('test_dataloader', 'test_evaluator'):
        if cfg.get(key) is None:
            raise KeyError(f'config {args.config!r} has no {key}')
    if not isinstance(cfg.test_evaluator, (dict, list, tuple)):
        raise ValueError(f'config {args.config!r}: test_evaluator must be a dict or a list, got {cfg.test_evaluator!r}')
    check_data(cfg, ('test_dataloader',))
    if args.dump:
        evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
        cfg.test_evaluator = [*evaluators, dict(type='lckd_mm.DumpPredictions', out_file_path=args.dump)]
    # Loaded here, strictly: the Runner's own loading lets any key be missing.
    cfg.load_from, cfg.resume = None, False
    prepare_launch(cfg)
    runner = build_runner(cfg)
    model = unwrapped(runner.model)
    load_strictly(model, args.checkpoint, 'test')
    metrics = runner.test()
    if args.out and runner.rank == 0:
        import json

        Path(args.out).write_text(json.dumps({k: float(v) for k, v in metrics.items()}, indent=1) + '\n')


def fit(argv: list[str]) -> None:
    """``tools/fit_connectors.py``: what a distillation estimates from training images, into a file."""
    from ..hooks import DistillationHook

    p = parser('Fit what a distillation takes from training images: auto-encoders, margins')
    p.add_argument('out', help="file to write, for default_hooks.distillation.fitted of this distillation's runs")
    args = p.parse_args(argv)
    cfg = read_config(args)
    if not is_distillation(cfg):
        raise ValueError(f'config {args.config!r} is no distillation, so there is nothing to fit')
    check_data(cfg, ('train_dataloader',))
    check_parallelism(cfg, 'a Distiller taps the features of a whole teacher')
    check_teacher_file(cfg)
    cfg.load_from, cfg.resume = None, False
    add_hooks(cfg)
    cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
    prepare_launch(cfg)
    runner = build_runner(cfg)
    (hook,) = (h for h in runner.hooks if isinstance(h, DistillationHook))
    state = hook.fit(runner)
    if runner.rank == 0:
        save_whole({STATE_KEY: dict(version=1, terms=state)}, args.out)
        runner.logger.info(f'written to {args.out}; use it with default_hooks.distillation.fitted={args.out}')


def add_hooks(cfg: Config) -> None:
    """The hooks that every training has unless its config sets them to None.

    ResumeHook, SafeCheckpointHook in a plain CheckpointHook's place; of a distillation, DistillationHook and
    NonFiniteHook, or OnlineHook where nets learn together. What a config gives of them, such as
    ``default_hooks.non_finite.action``, is kept.
    """
    # A Config keeps a copy of what it is given, so each dict is fetched again after it is set.
    cfg.setdefault('default_hooks', {})
    hooks = cfg.default_hooks
    kinds = dict(_OWN_HOOKS)
    if is_online(cfg):
        kinds.update(distillation='lckd_mm.OnlineHook')
        del kinds['non_finite']  # it watches one optimizer
    for name, kind in kinds.items():
        given = hooks.get(name, {})
        if given is None:
            del hooks[name]
        elif is_distillation(cfg) or name == 'resume':
            hooks[name] = {'type': kind, **given}
    hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    saving = hooks['checkpoint']
    if isinstance(saving, dict) and saving.get('type') in ('CheckpointHook', 'mmengine.CheckpointHook'):
        saving['type'] = 'lckd_mm.SafeCheckpointHook'


def choose_start(cfg: Config, resume: str | None) -> tuple[dict | None, list[str]]:
    """Decide which file training starts from, read it whole, and write that into the config.

    Args:
        resume: ``--resume``: a file, 'auto' for the newest good one in the work_dir, None for what the config says.
    Returns:
        the file's content, None where training starts from nothing, or from an address that is fetched later; and
        sentences for the log.
    Raises:
        FileNotFoundError, ValueError: the file is not there, or is damaged, or there are only damaged ones.
    """
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    notes = []
    if resume == 'auto':
        saving = cfg.default_hooks.get('checkpoint') or {}
        # mmengine's own rule for where checkpoints go.
        folders = [Path(saving['out_dir'], Path(cfg.work_dir).name)] if saving.get('out_dir') else []
        names = [saving['filename_tmpl']] if saving.get('filename_tmpl') else []
        found = newest_good(cfg.work_dir, folders, names)
        if found is None:
            # Killed before its first checkpoint, a run begins as it did the first time, load_from and all.
            cfg.resume = False
            notes.append(f'resume: {cfg.work_dir!r} has no checkpoint yet; training starts from its beginning')
            resume = None
        else:
            resume, loaded, broken = found
            notes += [f'{note}; it is passed over and left where it is' for note in broken]
    elif resume is not None and '://' not in resume:
        try:
            loaded = read_resumable(resume)
        except ValueError as error:
            good = good_sibling(resume)
            raise ValueError(f'{error}; a good one beside it: {good}' if good else str(error)) from error
    elif resume is not None:
        loaded = None
    if resume is not None:
        cfg.resume, cfg.load_from = True, resume
        notes.append(f'resume: going on from {resume}')
        seed = loaded and loaded['meta'].get('seed')
        if seed is not None and (cfg.get('randomness') or {}).get('seed') is None:
            # The Runner takes the file's seed over only after the loaders are shuffled by another.
            cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
        return loaded, notes
    source = cfg.get('load_from')
    return (read_checkpoint(source, 'load_from') if source and '://' not in source else None), notes


def check_start(runner: Runner, loaded: dict | None) -> None:
    """Say what of the file to start from fits the model, and of each ``init_cfg=dict(type='Pretrained')``; ValueError
    where nothing does."""
    if not isinstance(runner.model, nn.Module):
        return  # FlexibleRunner builds its model later
    model = unwrapped(runner.model)
    reports = []
    if loaded is not None:
        who = 'resume' if runner._resume else 'load_from'
        reports.append(check_loading(model, loaded, runner._load_from, who, strict=runner._resume))
    else:
        reports += check_pretrained(model)
    for report in filter(None, reports):
        runner.logger.warning(report)


def check_pretrained(model: torch.nn.Module) -> list[str | None]:
    """:func:`~lckd_mm.storage.checkpoint.check_loading` for every module that ``init_cfg`` fills from a local file."""
    reports = []
    for name, module in model.named_modules():
        rules = getattr(module, 'init_cfg', None)
        for rule in rules if isinstance(rules, (list, tuple)) else [rules]:
            source = rule.get('checkpoint') if isinstance(rule, dict) and rule.get('type') == 'Pretrained' else None
            if not isinstance(source, str) or '://' in source:
                continue
            who = f'init_cfg of {name or type(module).__name__}'
            loaded = read_checkpoint(source, who)
            prefix = rule.get('prefix')
            if prefix:
                state, prefix = loaded.get('state_dict', loaded), prefix.rstrip('.') + '.'
                loaded = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            reports.append(check_loading(module, loaded, source, who))
    return reports


def build_runner(cfg: Config) -> Runner:
    return Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)


def enable_amp(cfg: Config) -> None:
    """Turn OptimWrapper into AmpOptimWrapper, as the hosts' tools do."""
    if not torch.cuda.is_available():
        raise ValueError(
            '--amp: mixed precision needs a GPU, and none is visible here; train without --amp, or in bfloat16 on the '
            'CPU with --cfg-options optim_wrapper.type=lckd_mm.AutocastOptimWrapper'
        )
    several = cfg.optim_wrapper.get('constructor') in ONLINE_CONSTRUCTOR
    wrappers = [c for c in cfg.optim_wrapper.values() if isinstance(c, dict)] if several else [cfg.optim_wrapper]
    for wrapper in wrappers:
        kind = wrapper.get('type', 'OptimWrapper')
        if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise ValueError(f'--amp: it can change an OptimWrapper, but the config has {kind}')
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')


def check_teacher_file(cfg: Config) -> None:
    """A teacher that is not there is said before any data set is read."""
    teacher = cfg.model.get('teacher')
    checkpoint = teacher.get('checkpoint') if isinstance(teacher, dict) else None
    if isinstance(checkpoint, str) and '://' not in checkpoint and not Path(checkpoint).is_file():
        raise FileNotFoundError(
            f'teacher: no checkpoint at {checkpoint!r}; train the teacher first, or name another with '
            '--cfg-options model.teacher.checkpoint=PATH'
        )


def check_data(cfg: Config, loaders: tuple[str, ...]) -> None:
    """FileNotFoundError where a data set of the config is not on disk, with where it was looked for and its cure."""
    for loader in loaders:
        if not isinstance(cfg.get(loader) or {}, dict):
            raise ValueError(f'{loader} must be a dict with a dataset, got {cfg[loader]!r}')
        for dataset in _datasets((cfg.get(loader) or {}).get('dataset')):
            if dataset.get('download', 'CIFAR' in dataset.type or 'MNIST' in dataset.type):
                continue
            root = dataset.get('data_root') or ''
            parts = [dataset.get('ann_file')]
            prefix = dataset.get('data_prefix')
            parts += list(prefix.values()) if isinstance(prefix, dict) else [prefix]
            for part in [None, *parts]:
                path = os.path.join(root, part) if isinstance(part, str) and part else root
                if path and '://' not in path and not os.path.exists(path):
                    hint = next((h for key, h in _DATA_HINTS.items() if key in path), 'set data_root to where it is')
                    raise FileNotFoundError(f'{loader}: no data at {path!r} ({dataset.type}); {hint}')


def _datasets(dataset: Any) -> Iterator[ConfigDict]:
    if not isinstance(dataset, dict):
        return
    inner = dataset.get('datasets') or ([dataset.dataset] if 'dataset' in dataset else [])
    if not inner and 'type' in dataset:
        yield dataset
    for one in inner:
        yield from _datasets(one)
