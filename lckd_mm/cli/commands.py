"""The code of tools/train.py, test.py and fit_connectors.py: arguments, checks before a run, short errors."""

import argparse
import contextlib
import copy
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..config import (
    OWN_HOOKS,
    add_hooks,
    check_data,
    check_teacher_file,
    has_several_optimizers,
    has_teacher,
    is_distillation,
    kind_of,
    plain_datasets,
    student_config,
    student_model,
)
from ..errors import CLEAR, one_line
from ..evaluation.drawing import HostPictures
from ..hosts import data_meta, load_config, unwrapped
from ..recipes import RECIPES, default_work_dir, start
from ..registry import OPTIM_WRAPPERS, type_name
from ..storage.checkpoint import add_state, load_strictly
from ..storage.files import install, near, save_whole, trust, write_whole
from .ending import command, interruptible, results
from .launch import check_parallelism, prepare_launch
from .options import Options
from .start import check_start, choose_start

_MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments that every OpenMMLab tool has, and ours."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument('config', help='path of a config file')
    p.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<name of the config>)')
    p.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
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
    """Run a tool; print an error as one sentence on stderr and return 1, or with ``--debug`` raise it."""
    argv = sys.argv[1:] if argv is None else argv
    install()
    try:
        main(argv)
        if torch.distributed.is_initialized():
            # End together: if a rank exits while another still talks to it, gloo's threads may abort it with a wrong
            # exit status.
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
    except KeyboardInterrupt as interruption:
        for line in filter(None, interruption.args or ('interrupted',)):
            print(line, file=sys.stderr)
        return 130
    except Exception as error:
        if '--debug' in argv:
            raise
        hint = '' if isinstance(error, CLEAR) else ' (--debug shows where)'
        print(f'error: {one_line(error)}{hint}', file=sys.stderr)
        return 1
    return 0


def option_path(path: Path, flag: str) -> str:
    """A file's path that ``--cfg-options`` passes on unchanged; made relative to the working directory if necessary.

    Raises:
        ValueError: it holds characters that mmengine removes from option values or splits them at.
    """
    lost = re.compile(r'[\s,\'"()\[\]]')
    if lost.search(str(path)):
        with contextlib.suppress(ValueError):
            path = path.absolute().relative_to(Path.cwd())
    if lost.search(str(path)):
        raise ValueError(f'{flag}: --cfg-options cannot take the spaces, commas, quotes or brackets in {str(path)!r}')
    return str(path)


def read_config(args: argparse.Namespace) -> Config:
    """The config with the command line's overrides and its work_dir, checked for the keys that a run needs."""
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
    # mmengine accepts None only for its own default hooks; let None remove any other inherited hook too.
    kept = (*_MMENGINE_HOOKS, *OWN_HOOKS)  # train() adds the latter unless they are None
    for name in [k for k, v in cfg.get('default_hooks', {}).items() if v is None and k not in kept]:
        del cfg.default_hooks[name]
    if not isinstance(cfg.get('model'), dict) or 'type' not in cfg.model:
        raise KeyError(f'config {args.config!r} defines no `model` with a type; inherit a baseline with _base_')
    return cfg


def train(argv: list[str]) -> None:
    """``tools/train.py``."""
    p = parser('Train a model, or distil one where the config says so')
    p.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint; without a value, from the newest good one in the work_dir',
    )
    p.add_argument(
        '--teacher',
        nargs='+',
        metavar='NAME',
        help='distil the config from this teacher: a checkpoint, a config and a checkpoint, or a config of a host with '
        'published weights; the distillation config is written into the work_dir',
    )
    p.add_argument('--recipe', default='auto', help=f'with --teacher: {", ".join(RECIPES)} (default: auto)')
    p.add_argument(
        '--unlabelled', metavar='FOLDER', help='with --teacher: images that nobody labelled, to learn from, too'
    )
    p.add_argument('--dry-run', action='store_true', help='with --teacher: write the distillation config, do not train')
    p.add_argument('--amp', action='store_true', help='automatic mixed precision in float16 (needs a GPU)')
    p.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    args = p.parse_args(argv)
    if args.teacher:
        for file in args.trust_checkpoint:
            trust(file)
        for key in args.cfg_options:
            if key.split('.')[0] == 'model' and key.split('.')[1:2] not in (['student'], ['teacher'], ['terms']):
                raise ValueError(
                    f'--cfg-options: {key}: with --teacher the model is a Distiller; write model.student.… for what is '
                    "the student's"
                )
        args.work_dir = args.work_dir or args.cfg_options.get('work_dir') or default_work_dir(args.config, args.recipe)
        args.config = start(args.config, args.teacher, args.recipe, args.work_dir, args.unlabelled)
        if args.dry_run:
            print(f'train it: {command("train")} {shlex.join([near(args.config), "--work-dir", near(args.work_dir)])}')
            return
    elif args.dry_run or args.recipe != 'auto' or args.unlabelled:
        p.error('--recipe, --unlabelled and --dry-run belong to --teacher')
    cfg = read_config(args)
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError('--auto-scale-lr: the config has no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    check_data(cfg, ('train_dataloader', 'val_dataloader'))
    if is_distillation(cfg):
        check_parallelism(cfg, 'a Distiller needs the whole student')
        check_teacher_file(cfg)
        if has_several_optimizers(cfg):
            cfg.setdefault('model_wrapper_cfg', dict(type='lckd_mm.OnlineDataParallel'))
    add_hooks(cfg)
    loaded, notes = choose_start(cfg, args.resume)
    prepare_launch(cfg)
    runner = build_runner(cfg)
    if cfg.get('compile') and is_distillation(cfg):
        notes.append('compile: student and teacher run uncompiled, because taps read nothing inside compiled code')
    for note in notes:
        runner.logger.warning(note)
    check_start(runner, loaded)
    del loaded  # frees the weights, averages and optimizer state
    with interruptible(runner, argv) as since:
        runner.train()
    if runner.rank == 0:
        runner.logger.info(results(runner, args.config, argv, since))


def test(argv: list[str]) -> None:
    """``tools/test.py``: test the student alone, loaded strictly."""
    p = parser('Test a checkpoint; of a distillation config, the student alone')
    p.add_argument('checkpoint', help='path of a checkpoint')
    p.add_argument('--out', help='write the metrics to this JSON file')
    p.add_argument('--net', type=int, default=0, help="index of the checkpoint's net, if several learn together")
    p.add_argument('--dump', metavar='FILE.pkl', help="write every sample's truth and prediction to this file")
    p.add_argument(
        '--show-dir',
        metavar='DIR',
        help='draw every prediction, beside the truth, into this folder; of several processes, the first',
    )
    p.add_argument('--tta', action='store_true', help="test-time augmentation: the config's, else the host's default")
    args = p.parse_args(argv)
    if args.dump and not args.dump.endswith('.pkl'):
        raise ValueError(f'--dump: the file must end in .pkl, got {args.dump!r}')
    cfg = student_config(read_config(args), args.net)
    for key in ('test_dataloader', 'test_evaluator'):
        if cfg.get(key) is None:
            raise KeyError(f'config {args.config!r} has no {key}')
    check_data(cfg, ('test_dataloader',))
    if args.dump:
        evaluators = [cfg.test_evaluator] if isinstance(cfg.test_evaluator, dict) else cfg.test_evaluator
        cfg.test_evaluator = [*evaluators, dict(type='lckd_mm.DumpPredictions', out_file_path=args.dump)]
    if args.tta:
        augment_test(cfg)
    # Load strictly here: the Runner's own loading tolerates missing keys.
    cfg.load_from, cfg.resume = None, False
    prepare_launch(cfg)
    runner = build_runner(cfg)
    model = unwrapped(runner.model)
    model = model.module if args.tta else model
    meta = data_meta(cfg, load_strictly(model, args.checkpoint, 'test'))
    if args.show_dir:
        from ..hooks.pictures import PicturesHook

        runner.register_hook(PicturesHook(HostPictures(model, meta, args.show_dir)))
    metrics = runner.test()
    if args.out and runner.rank == 0:
        write_whole(args.out, (json.dumps({k: float(v) for k, v in metrics.items()}, indent=1) + '\n').encode())


#: What the hosts' own tools take where a config does not say; mmseg's takes nothing.
_TTA = {
    'mmdet': dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    'mmpretrain': dict(type='AverageClsScoreTTA'),
}


def augment_test(cfg: Config) -> None:
    """Change a config so that its test merges the predictions of several views, as the hosts' tools do with ``--tta``.

    By its ``tta_model`` and ``tta_pipeline``; without them, for a detector or classifier, of the image and its mirror.

    Raises:
        KeyError: a segmentor's config that has not both.
    """
    scope = cfg.get('default_scope')
    model, pipeline = cfg.get('tta_model', _TTA.get(scope)), cfg.get('tta_pipeline')
    if model is None or (pipeline is None and scope not in _TTA):
        raise KeyError(
            "--tta: the config has no tta_model or no tta_pipeline; those of mmseg's data sets, such as "
            "configs/_base_/datasets/cityscapes.py of mmseg, have a pipeline, and tta_model=dict(type='SegTTAModel')"
        )
    for dataset in plain_datasets(cfg.test_dataloader.dataset):
        dataset.pipeline = pipeline or _mirrored(dataset.pipeline, scope)
    cfg.model = ConfigDict(**model, module=student_model(cfg))


def _mirrored(pipeline: list[dict], scope: str) -> list[dict]:
    """A test pipeline with the image and its mirror as views."""
    *steps, pack = copy.deepcopy(pipeline)
    if scope == 'mmdet':  # it turns the boxes back by them
        shapes = ('ori_shape', 'img_shape', 'scale_factor')
        pack['meta_keys'] = ('img_id', 'img_path', *shapes, 'flip', 'flip_direction')
    # The image itself first: the truth is taken from the first view.
    views = [[dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)], [pack]]
    return [*steps, dict(type='TestTimeAug', transforms=views)]


def fit(argv: list[str]) -> None:
    """``tools/fit_connectors.py``: fit the connectors that need training images, and write them to a file."""
    from ..hooks import DistillationHook

    p = parser('Fit what a distillation takes from training images: auto-encoders, margins')
    p.add_argument('out', help="file to write, for default_hooks.distillation.fitted of this distillation's runs")
    args = p.parse_args(argv)
    cfg = read_config(args)
    if not has_teacher(cfg):
        raise ValueError(f'config {args.config!r} has no teacher, so there is nothing to fit')
    check_data(cfg, ('train_dataloader',))
    check_parallelism(cfg, 'a Distiller needs the whole teacher')
    check_teacher_file(cfg)
    cfg.load_from, cfg.resume = None, False
    add_hooks(cfg)
    cfg.default_hooks.distillation = dict(type='lckd_mm.DistillationHook')
    prepare_launch(cfg)
    runner = build_runner(cfg)
    (hook,) = (h for h in runner.hooks if isinstance(h, DistillationHook))
    state = hook.fit(runner)
    if runner.rank == 0:
        content: dict = {}
        add_state(content, version=1, terms=state)
        save_whole(content, args.out)
        runner.logger.info(f'written to {args.out}; use it with default_hooks.distillation.fitted={args.out}')


def build_runner(cfg: Config) -> Runner:
    return Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)


def enable_amp(cfg: Config) -> None:
    """Replace OptimWrapper by AmpOptimWrapper, as the hosts' tools do."""
    if not torch.cuda.is_available():
        raise ValueError(
            '--amp: mixed precision needs a GPU, and there is none; on the CPU train in bfloat16 with --cfg-options '
            'optim_wrapper.type=lckd_mm.AutocastOptimWrapper'
        )
    several = has_several_optimizers(cfg)
    wrappers = [c for c in cfg.optim_wrapper.values() if isinstance(c, dict)] if several else [cfg.optim_wrapper]
    for wrapper in wrappers:
        if 'type' in wrapper and kind_of(cfg, wrapper, OPTIM_WRAPPERS) not in (OptimWrapper, AmpOptimWrapper):
            raise ValueError(f'--amp: it replaces OptimWrapper alone, and the config has {type_name(wrapper.type)}')
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
