"""One side of tools/bench/razor.py in its own process: time, memory and file size of a training by mmengine's Runner.

    python tools/bench/razor_side.py {lckd_mm,mmrazor,alone} WORK_DIR TEACHER [--steps 60] [--warmup 20]

Only the measured side is imported: mmrazor runs without this package, and the student alone without either.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import sys
import time
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]

SCENES = '1xb8-digit-scenes-96x96.py'
CONFIGS = {
    'lckd_mm': 'tools/bench/razor/lckd_mm_fcn.py',
    'mmrazor': 'tools/bench/razor/mmrazor_fcn.py',
    'alone': f'configs/demo/fcn_r18-w8_{SCENES}',
}
TEACHER_KEYS = {'lckd_mm': 'model.teacher.checkpoint', 'mmrazor': 'model.teacher_ckpt'}


def import_mmrazor() -> None:
    """Import mmrazor 1.0.0 without its quantization, which needs parts of torch that were removed in 2.0.

    Distillation does not use it, but `mmrazor.structures` imports it, and everything imports that. The stub has only
    the two names that other modules of mmrazor import; quantization does not work here.
    """
    quantization = types.ModuleType('mmrazor.structures.quantization')
    quantization.__all__ = []
    quantization.BackendConfigs = {}
    quantization.QConfigHandler = type('QConfigHandler', (), {})
    sys.modules[quantization.__name__] = quantization
    for module in ('mmrazor.models', 'mmrazor.engine'):
        importlib.import_module(module)


def read(side: str, work_dir: Path, teacher: Path | None, options: dict[str, Any]) -> Any:
    """The side's config, read as by its own tools."""
    if side == 'lckd_mm':
        from lckd_mm.cli import read_config

        args = dict(config=CONFIGS[side], work_dir=str(work_dir), launcher='none', cfg_options={})
        cfg = read_config(argparse.Namespace(**args))
    else:
        from mmengine.config import Config

        cfg = Config.fromfile(CONFIGS[side])
        cfg.work_dir = str(work_dir)
    if side in TEACHER_KEYS:
        cfg.merge_from_dict({TEACHER_KEYS[side]: str(teacher)})
    cfg.merge_from_dict(options)
    return cfg


def build_runner(side: str, cfg: Any) -> Any:
    """For lckd_mm a Runner as in tools/train.py, with all hooks; for the others a plain mmengine Runner."""
    if side != 'lckd_mm':
        from mmengine.runner import Runner

        return Runner.from_cfg(cfg)
    from lckd_mm import cli, config
    from lckd_mm.cli import launch

    config.check_data(cfg, ('train_dataloader',))
    config.check_teacher_file(cfg)
    cli.add_hooks(cfg)
    launch.prepare_launch(cfg)
    return cli.build_runner(cfg)


def measure(side: str, cfg: Any, steps: int, warmup: int) -> dict[str, Any]:
    """Train; return medians in ms of the step, its CPU time and the iteration, peaks in bytes, and :func:`written`."""
    import torch
    from measure import machine, peak_memory
    from mmengine.hooks import Hook

    cfg.merge_from_dict({
        'train_cfg.max_iters': warmup + steps,
        'train_cfg.val_interval': warmup + steps + 1,
        'default_hooks.checkpoint.interval': warmup + steps,
        'log_level': 'ERROR',
    })  # fmt: skip
    # Import the libraries now, so that they do not count as growth on the side that would import them later.
    for library in ('mmseg.models', 'mmseg.datasets', 'mmseg.evaluation', 'mmseg.visualization', 'mmpretrain.models'):
        importlib.import_module(library)
    before = resident()
    runner = build_runner(side, cfg)
    begun, ended, busy = [], [], []

    class Begin(Hook):
        def before_train_iter(self, *args, **kwargs) -> None:
            begun.append(time.perf_counter())
            busy.append(-time.process_time())

    class End(Hook):
        def after_train_iter(self, *args, **kwargs) -> None:
            busy[-1] += time.process_time()
            ended.append(time.perf_counter())

    # Last hook before the step and first after it, so that only train_step is timed.
    runner.register_hook(Begin(), priority='LOWEST')
    runner.register_hook(End(), priority='HIGHEST')
    runner.train()
    grown = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    step = statistics.median(b - a for a, b in list(zip(begun, ended, strict=True))[warmup:])
    iteration = statistics.median(b - a for a, b in zip(begun[warmup:], begun[warmup + 1 :]))
    batch = next(iter(runner.train_dataloader))
    _, peak, _ = peak_memory(lambda: runner.model.train_step(batch, runner.optim_wrapper), torch.device('cpu'))
    model = runner.model
    return dict(
        side=side, step_ms=1e3 * step, cpu_ms=1e3 * statistics.median(busy[warmup:]), iteration_ms=1e3 * iteration,
        peak_step=peak, grown=grown,
        **written(Path(cfg.work_dir) / f'iter_{warmup + steps}.pth'), machine=machine(torch.device('cpu')),
        parameters=sum(p.numel() for p in model.parameters()),
    )  # fmt: skip


def resident() -> int:
    """Current resident memory of this process in bytes."""
    return os.sysconf('SC_PAGE_SIZE') * int(Path('/proc/self/statm').read_text().split()[1])


def written(path: Path) -> dict[str, Any]:
    """A training's checkpoint: size of the file and of the weights, and whether plain mmseg can load them."""
    import torch
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS

    # Safe, since this process wrote it; it has mmengine's log buffers, which weights_only would refuse.
    state = torch.load(path, map_location='cpu', weights_only=False)['state_dict']
    with DefaultScope.overwrite_default_scope('mmseg'):
        student = MODELS.build(Config.fromfile(CONFIGS['alone']).model)
    try:
        student.load_state_dict(state, strict=True)
        loads = True
    except RuntimeError:
        loads = False
    weights = sum(x.numel() * x.element_size() for x in state.values())
    return dict(file=path.stat().st_size, weights=weights, tensors=len(state), plain_student=loads)


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('side', choices=CONFIGS)
    p.add_argument('work_dir', type=Path)
    p.add_argument('teacher', type=Path)
    p.add_argument('--steps', type=int, default=60)
    p.add_argument('--warmup', type=int, default=20)
    p.add_argument('--out', type=Path, required=True, help='the figures, as JSON')
    p.add_argument('--options', type=json.loads, default={}, help='config values, as JSON')
    args = p.parse_args(argv)
    if args.side == 'mmrazor':
        import_mmrazor()
    cfg = read(args.side, args.work_dir, args.teacher, args.options)
    args.out.write_text(json.dumps(measure(args.side, cfg, args.steps, args.warmup)))


if __name__ == '__main__':
    main(sys.argv[1:])
