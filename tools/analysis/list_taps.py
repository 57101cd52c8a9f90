"""List what can be tapped in a config's model: python tools/analysis/list_taps.py CONFIG [--teacher]
[--backbone] [--neck] [--logits]."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

NOTES = """\
overwritten: changed in place later, so it cannot be tapped (a row @in of the next activation may be there instead);
before ReLU: read by that activation next, the position of OFD and of Lipschitz matching; @preact too: the module ends
in an activation, and its input can be tapped so; no gradient: frozen or detached, refused to a student; only with the
loss, only in training: runs in training alone, as auxiliary heads do; not in a plain forward: a prediction runs it, and
training does. Module outputs that are no tensors or tuples with tensors, and
heads that are called by their methods, are not listed: tap the modules inside."""


def main(argv: list[str]) -> None:
    from mmengine.registry import init_default_scope

    from lckd_mm.cli import Options, read_config
    from lckd_mm.config import has_teacher, plain_model, teachers_of
    from lckd_mm.distillation.images import TeacherImages
    from lckd_mm.distillation.teachers import without_weights
    from lckd_mm.hosts import training_size
    from lckd_mm.taps.presets import PRESETS

    p = argparse.ArgumentParser(description=__doc__, epilog=NOTES, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('config', help="path of a config file, or a host's own such as mmseg::fcn/fcn_r50-d8_….py")
    which = p.add_mutually_exclusive_group()
    which.add_argument('--student', action='store_true', help="the student's taps, or a plain config's (the default)")
    which.add_argument('--teacher', action='store_true', help="the teacher's taps, of a distillation config")
    p.add_argument('--of', metavar='NAME', help='of several teachers, which')
    p.add_argument('--filter', default='', metavar='TEXT', help='only rows that hold this text')
    for preset in PRESETS:
        p.add_argument(
            f'--{preset}',
            dest='presets',
            action='append_const',
            const=preset,
            help=f'only what taps={preset!r} stands for, ready to paste',
        )
    p.add_argument('--size', type=int, help='height and width of the image that is run; by default those of training')
    p.add_argument('--cfg-options', nargs='+', action=Options, default={}, metavar='KEY=VALUE')
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    args = p.parse_args(argv)
    args.launcher, args.work_dir = 'none', None
    if args.size is not None and not 0 < args.size <= 8192:
        raise ValueError(f'--size: the side of an image, from 1 to 8192, got {args.size}')
    cfg = read_config(args)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    if args.teacher:
        teachers = teachers_of(cfg) if has_teacher(cfg) else {}
        if not teachers:
            raise ValueError(f'{args.config!r} distils from no teacher')
        of = next(iter(teachers)) if args.of is None and len(teachers) == 1 else args.of
        if of not in teachers:
            raise ValueError(f'--of: name one of the teachers {", ".join(teachers)}')
        model, images = without_weights(cfg, teachers[of])
    elif args.of is not None:
        raise ValueError('--of names a teacher; write --teacher, too')
    else:
        model, images = plain_model(cfg), TeacherImages()
    size = (args.size, args.size) if args.size else images.sized(training_size(model))
    if args.presets:
        print_presets(model, args.presets, size, not args.teacher)
    else:
        # Gradients do not matter for the teacher's tensors.
        print_table(model, size, not args.teacher, args.filter)


def print_presets(model, presets: list[str], size: tuple[int, int], gradient: bool) -> None:
    from lckd_mm.distillation.dry_run import MadeUpImage, trace_taps
    from lckd_mm.hosts import run_once
    from lckd_mm.taps import FeatureTaps
    from lckd_mm.taps.presets import preset_taps

    addresses, missing = [], []
    for preset in presets:
        try:
            addresses.append(preset_taps(model, preset, size))
        except ValueError as error:
            missing.append(f'# --{preset}: {str(error).removeprefix("taps: ")}')
            if len(missing) == len(presets):
                raise
    taps = FeatureTaps({name: address for of in addresses for name, address in of.items()}, 'preset')
    trace_taps(taps, model, MadeUpImage.of('list_taps', size, [model], '--size '))
    with taps.record(model, stop=True) as features:
        run_once(model, size, 'tensor', gradient)
    print('taps = dict(')
    for name, address in taps.addresses.items():
        tensors = features[name] if isinstance(features[name], list) else [features[name]]
        frozen = ', no gradient: frozen' if gradient and not tensors[0].requires_grad else ''
        print(f'    {name}={str(address)!r},  # {", ".join(str(tuple(x.shape)) for x in tensors)}{frozen}')
    print('\n'.join([')', *missing]))


def print_table(model, size: tuple[int, int], gradient: bool, text: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from lckd_mm.errors import one_line
    from lckd_mm.hosts import image_channels, run_once
    from lckd_mm.taps import Pass
    from lckd_mm.taps.listing import list_taps

    def run(one):
        run_once(model, size, one.mode, gradient, training=one.training)

    rows, failures = list_taps(model, run, gradient)
    channels = image_channels(model)
    image = f'{size[0]} x {size[1]}' + (f' with {channels} channels' if channels != 3 else '')
    if {Pass(), Pass('predict')} <= failures.keys():
        error = failures[Pass()]
        raise ValueError(
            f'{type(model).__name__} does not run on one image of {image} ({one_line(error)}); set --size to one that '
            'it takes'
        ) from error
    if Pass('loss', True) in failures:
        error = failures[Pass('loss', True)]
        print(f'modules that only training runs may be missing: {one_line(error)}', file=sys.stderr)
    table = Table(title=f'{type(model).__name__}, one image of {image}', title_justify='left')
    for column in ('address', 'module', 'calls', 'shape', 'note'):
        table.add_column(column, overflow='fold')
    for row in rows:
        if text in f'{row.address} {row.kind} {row.note}':
            table.add_row(row.address, row.kind, str(row.calls), row.shape, row.note)
    if not table.rows:
        raise ValueError(f'--filter: none of {len(rows)} addresses holds {text!r}')
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == '__main__':
    try:
        from lckd_mm.cli import run_tool
    except ImportError as error:
        sys.exit(f'error: {error}')
    sys.exit(run_tool(main))
