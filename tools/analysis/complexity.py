"""Parameters, FLOPs and speed of student and teacher: python tools/analysis/complexity.py CONFIG [--speed]."""

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

NOTES = """\
FLOPs are fused multiply-adds, as mmengine counts them, of convolutions, matrix products, normalisations and the like,
of one image through the plain forward (no decoding, no NMS). --speed runs both nets in turn, so that whatever else the
machine does meets both, and gives the median."""


def main(argv: list[str]) -> None:
    import torch
    from mmengine.registry import init_default_scope
    from rich.console import Console
    from rich.table import Table

    from lckd_mm.cli import Options, read_config
    from lckd_mm.config import has_teacher, input_size, is_online, plain_model, teachers_of
    from lckd_mm.distillation.teachers import without_weights
    from lckd_mm.errors import one_line
    from lckd_mm.hosts import ModuleForward, host_of
    from lckd_mm.reporting.costs import figures

    p = argparse.ArgumentParser(description=__doc__, epilog=NOTES, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('config', help="path of a config file, or a host's own such as mmseg::fcn/fcn_r50-d8_….py")
    p.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='of the image; by default that of training')
    p.add_argument('--speed', action='store_true', help='time the forward of both nets')
    p.add_argument('--batch', type=int, default=1, help='images at a time, for --speed (default: 1)')
    p.add_argument('--rounds', type=int, default=20, help='for --speed (default: 20)')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--out', help='write the figures to this JSON file')
    p.add_argument('--cfg-options', nargs='+', action=Options, default={}, metavar='KEY=VALUE')
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    args = p.parse_args(argv)
    if args.batch < 1 or args.rounds < 1:
        raise ValueError(f'--batch and --rounds must be at least 1, got {args.batch} and {args.rounds}')
    args.launcher, args.work_dir = 'none', None
    cfg = read_config(args)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    models = {'student' if has_teacher(cfg) else 'model': plain_model(cfg)}
    if is_online(cfg):
        models = {f'net {k}': plain_model(cfg, k) for k in range(len(cfg.model.nets))}
    if has_teacher(cfg):
        taught = {name: without_weights(cfg, teacher) for name, teacher in teachers_of(cfg).items()}
        models |= {name: net if host_of(net) else ModuleForward(net) for name, (net, _) in taught.items()}
    size = tuple(args.size) if args.size else input_size(cfg, next(iter(models.values())))
    sizes = dict.fromkeys(models, size)
    if has_teacher(cfg):
        sizes |= {name: images.sized(size) for name, (_, images) in taught.items()}
    try:
        rows = {name: figures(model, sizes[name]) for name, model in models.items()}
    except RuntimeError as error:
        raise ValueError(
            f'{args.config!r}: no image of {size[0]} x {size[1]} goes through the model ({one_line(error)}); give '
            '--size H W, unless it needs more than images'
        ) from error
    if args.speed:
        for name, milliseconds in speed(models, sizes, args).items():
            rows[name]['milliseconds'] = milliseconds
            rows[name]['images_per_second'] = 1e3 * args.batch / milliseconds
    shown = f'{size[0]} x {size[1]}'
    shown += ''.join(f' ({name}: {h} x {w})' for name, (h, w) in sizes.items() if (h, w) != size)
    table = Table('', *rows, title=shown + f', batch {args.batch}, {args.device}' * args.speed)
    for key, title, form in (
        ('parameters', 'parameters', '{:,}'),
        ('flops', 'FLOPs', '{:,.0f}'),
        ('activations', 'activations', '{:,.0f}'),
        ('milliseconds', 'forward, ms', '{:.2f}'),
        ('images_per_second', 'images a second', '{:.1f}'),
    ):
        if all(key in row for row in rows.values()):
            table.add_row(title, *(form.format(row[key]) for row in rows.values()))
    Console().print(table)
    if args.out:
        Path(args.out).write_text(json.dumps(dict(size=size, device=args.device, **rows), indent=1) + '\n')


def speed(models: dict, sizes: dict[str, tuple[int, int]], args: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of a forward pass of one batch; the nets run alternately."""
    import time

    import torch

    from lckd_mm.hosts import image_channels
    from lckd_mm.storage.export import PlainForward

    device = torch.device(args.device)
    channels = image_channels(next(iter(models.values())))
    images = {name: torch.zeros(args.batch, channels, *size, device=device) for name, size in sizes.items()}
    forwards = {name: PlainForward(model).to(device).eval() for name, model in models.items()}
    times = {name: [] for name in forwards}
    with torch.inference_mode():
        for round_ in range(args.rounds + 2):
            for name, forward in forwards.items():
                start = time.perf_counter()
                forward(images[name])
                if device.type == 'cuda':
                    torch.cuda.synchronize(device)
                if round_ >= 2:  # the first two rounds warm up caches and select kernels
                    times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


if __name__ == '__main__':
    try:
        from lckd_mm.cli import run_tool
    except ImportError as error:
        sys.exit(f'error: {error}')
    sys.exit(run_tool(main))
