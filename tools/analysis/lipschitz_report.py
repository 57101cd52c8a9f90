"""Does Lipschitz matching do what it claims: python tools/analysis/lipschitz_report.py CONFIG CHECKPOINT [--teacher …].

For each pair of consecutive taps of the config's Lipschitz terms (or of the backbone's stages), for both nets:

sigma     the transmitting norm of the two raw maps, the quantity that Lipschitz matching matches. Normalised: divided
          by the maps' lengths, so that it does not depend on the scale of the activations
constant  the local Lipschitz constant: the largest singular value, at each image, of the Jacobian of the stage as a
          function of its front features; '–' if the back tap does not depend on the front tap alone (a skip connection
          around the tap, the levels of a pyramid)
bound     an upper bound of the stage's constant over all inputs: the product of its layers' operator norms, and a sum
          where paths meet (a residual block has 1 + the product of its branch)
image     the local Lipschitz constant from the preprocessed image to each tap
gap       |ln student - ln teacher|, per image
noise     with Gaussian noise on the preprocessed image: the config's own metric on the whole test set, and the change
          of each tap relative to its length

Both nets are in evaluation mode, on the first images of the test set. --before takes further student checkpoints, such
as the same student trained alone; each gets a column. With --seeds, each seed in turn replaces {seed} in the
checkpoints' paths, and the table has means and standard deviations over seeds; without, over images.
"""

import argparse
import contextlib
import io
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

TEACHER = 'teacher'
NOISE_SEED = 0  # the noise is the same for every net


def main(argv: list[str]) -> None:
    import torch
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    from lckd_mm.cli import Options, read_config
    from lckd_mm.config import check_data, student_config

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('config', help='path of a config file; that of a distillation names the teacher and the taps')
    p.add_argument('checkpoint', metavar='[NAME=]CHECKPOINT', help="the student's, perhaps with its column's name")
    p.add_argument('--teacher', metavar='CHECKPOINT', help='in place of the one in the config')
    p.add_argument('--before', nargs='+', default=[], metavar='[NAME=]CHECKPOINT', help='further ones of the student')
    p.add_argument('--seeds', nargs='+', type=int, help="replace {seed} in the checkpoints' paths")
    text = 'over seeds: which column to set against which (default: each against the first of --before)'
    p.add_argument('--against', nargs='+', metavar='NAME=NAME', help=text)
    p.add_argument('--images', type=int, default=64, help='for all but the metric (default: 64)')
    p.add_argument('--batch', type=int, default=16, help='images at a time, for all but the metric (default: 16)')
    text = 'standard deviations in units of the preprocessed image (default: 0.05 0.1 0.2 0.4); none: no noise'
    p.add_argument('--noise', nargs='*', type=float, default=[0.05, 0.1, 0.2, 0.4], metavar='LEVEL', help=text)
    parts = ['constant', 'image', 'bound', 'metric']
    p.add_argument('--without', nargs='+', default=[], choices=parts, help='save their time')
    p.add_argument('--metric', help='the one to tabulate, of those that the evaluator gives')
    p.add_argument('--out', help='folder for lipschitz.json, lipschitz.md and lipschitz.png')
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--cfg-options', nargs='+', action=Options, default={}, metavar='KEY=VALUE')
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    args = p.parse_args(argv)
    args.launcher, args.work_dir = 'none', None
    for name in ('images', 'batch'):
        if getattr(args, name) < 1:
            raise ValueError(f'--{name} must be at least 1, got {getattr(args, name)}')
    if not all(math.isfinite(level) and level > 0 for level in args.noise):
        raise ValueError(f'--noise: levels are finite numbers above 0, got {" ".join(map(str, args.noise))}')
    cfg = read_config(args)
    sources = [checkpoints(args, cfg, seed) for seed in (args.seeds or [None])]
    pairs = compared(args, list(sources[0]))
    plain = student_config(cfg)
    part = 'test' if plain.get('test_dataloader') is not None else 'val'
    dataloader, evaluator = (plain.get(f'{part}_{key}') for key in ('dataloader', 'evaluator'))
    if dataloader is None or evaluator is None:
        raise KeyError(f'config {args.config!r} has no test_dataloader and test_evaluator, nor those of validation')
    check_data(plain, (f'{part}_dataloader',))
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    MMLogger.get_instance('lipschitz_report', log_level='ERROR')  # every metric would print a table
    with contextlib.redirect_stdout(io.StringIO()):
        loader = Runner.build_dataloader(dict(dataloader, num_workers=0, persistent_workers=False))
        runs = [measure_all(cfg, paths, loader, evaluator, args) for paths in sources]
    result = dict(
        config=args.config,
        checkpoints={label: [paths[label] for paths in sources] for label in sources[0]},
        seeds=args.seeds,
        pairs=pairs,
        images=min(args.images, len(loader.dataset)),
        test_images=len(loader.dataset),
        noise=args.noise,
        metric=None if 'metric' in args.without else main_metric(runs, args.metric),
        runs=runs,
    )
    text = report(result)
    print(text)
    if args.out:
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / 'lipschitz.json').write_text(json.dumps(result, indent=1) + '\n')
        (out / 'lipschitz.md').write_text(text + '\n')
        draw(result, out / 'lipschitz.png')


# ---- what to measure


def checkpoints(args: argparse.Namespace, cfg: Any, seed: int | None) -> dict[str, str]:
    """Column to checkpoint for one seed: the teacher, those of --before, the student."""
    from lckd_mm.config import has_teacher, teachers_of

    if args.teacher and not has_teacher(cfg):
        raise ValueError(
            f'--teacher: the config {args.config!r} must be a distillation, which names the architecture of the teacher'
        )
    found = {}
    if has_teacher(cfg) and [name for name, one in teachers_of(cfg).items() if one.get('model')] != ['teacher']:
        if args.teacher:
            raise ValueError('--teacher: this config has no single teacher of a host')
        print('this report measures the teacher where it is a single one, of a host', file=sys.stderr)
    elif has_teacher(cfg):
        found[TEACHER] = args.teacher or cfg.model.teacher.get('checkpoint')
    for text in (*args.before, args.checkpoint):
        name, equals, path = text.partition('=')
        if not equals or '/' in name:
            path = text
            name = 'student' if text is args.checkpoint else Path(text).parent.name or Path(text).stem
        if name in found:
            raise ValueError(f'two columns are named {name!r}; rename one with NAME={path}')
        found[name] = path
    if seed is not None:
        still = [path for path in found.values() if '{seed}' not in path]
        if len(args.seeds) > 1 and len(still) == len(found):
            raise ValueError('--seeds: no checkpoint has {seed} in its path, so all seeds would be the same files')
        found = {name: path.replace('{seed}', str(seed)) for name, path in found.items()}
    for name, path in found.items():
        if '://' not in path and not Path(path).is_file():
            raise FileNotFoundError(f'{name}: no checkpoint at {path!r}')
    return found


def compared(args: argparse.Namespace, names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of columns (this, against that) whose differences are reported, paired by seed."""
    if args.against is None:
        first, *others = [name for name in names if name != TEACHER]
        return [(name, first) for name in others]
    pairs = [tuple(text.split('=')) for text in args.against]
    for text, pair in zip(args.against, pairs, strict=True):
        if len(pair) != 2 or not set(pair) <= set(names):
            raise ValueError(f'--against: expected NAME=NAME of the columns {", ".join(names)}, got {text!r}')
    return pairs


def measure_all(cfg: Any, paths: dict[str, str], loader: Any, evaluator: Any, args: argparse.Namespace) -> dict:
    """All measurements of every net of one seed, by column."""
    import smoothness
    import torch

    from lckd_mm.config import input_size, plain_model
    from lckd_mm.distillation import FrozenTeacher
    from lckd_mm.distillation.dry_run import MadeUpImage, merge_taps, trace_taps
    from lckd_mm.storage.checkpoint import load_strictly
    from lckd_mm.taps import FeatureTaps

    device, figures = torch.device(args.device), {}
    student = plain_model(cfg)
    size = input_size(cfg, student)
    links = smoothness.lipschitz_links(cfg, student)
    preprocessor = student.data_preprocessor.to(device)
    images = list(smoothness.first_images(loader, preprocessor, args.images, args.batch))
    for name, path in paths.items():
        print(f'{name}: {path}', file=sys.stderr)
        convert = {}
        if name == TEACHER:
            teacher = FrozenTeacher(cfg.model.teacher.model, path, allow=cfg.model.teacher.get('allow', ()))
            teacher.load()
            teacher.match_inputs(student.data_preprocessor)
            model, convert = teacher.model, dict(convert=teacher.convert)
        else:
            model = plain_model(cfg)
            load_strictly(model, path, name)
        model.requires_grad_(False).to(device).eval()
        side = int(name == TEACHER)
        role = 'teacher' if side else 'student'
        taps = merge_taps(role, model, cfg.model.get('taps'), cfg.model.get(f'{role}_taps')).addresses
        wanted = list(dict.fromkeys(tap for link in links for tap in link[side]))
        if not set(wanted) <= set(taps):
            taps = {**merge_taps(role, model, 'backbone', None).addresses, **taps}
        if not set(wanted) <= set(taps):
            missing = min(set(wanted) - set(taps))
            raise KeyError(f'{role}: no tap {missing!r} among {", ".join(map(repr, taps))}')
        net = smoothness.Net(model, FeatureTaps({tap: str(taps[tap]) for tap in wanted}, role), **convert)
        trace_taps(net.taps, model, MadeUpImage.of('lipschitz_report', size, [student]))
        stages = [stage for link in links for stage in smoothness.stages_of(net, link[side])]
        figures[name] = smoothness.measure(net, stages, images, args.noise, NOISE_SEED, args.without)
        if 'metric' not in args.without:
            noises = {0.0: None} | {x: smoothness.GaussianNoise(x, NOISE_SEED) for x in args.noise}
            figures[name]['metrics'] = {
                str(level): smoothness.metrics_under_noise(net, preprocessor, loader, evaluator, noise)
                for level, noise in noises.items()
            }
    return figures


def main_metric(runs: Sequence[dict], wanted: str | None) -> str:
    from lckd_mm.reporting.runs import METRICS

    names = list(next(iter(runs[0].values()))['metrics']['0.0'])
    if wanted is not None and wanted not in names:
        raise ValueError(f'--metric: there is no {wanted!r}, the evaluator gives {", ".join(names)}')
    return wanted or next((name for name in METRICS if name in names), names[0])


# ---- figures: functions of one seed's measurements and a column; they return a value, one value per image, or None

Figure = Callable[[dict, str], Any]


def stage_figure(stage: int, key: str) -> Figure:
    return lambda run, name: list(run[name]['stages'].values())[stage][key] or None


def image_figure(tap: int) -> Figure:
    return lambda run, name: list(run[name]['taps'].values())[tap]['image'] or None


def change_figure(tap: int, level: float) -> Figure:
    return lambda run, name: [100 * x for x in list(run[name]['taps'].values())[tap]['changes'][str(level)]]


def metric_figure(metric: str, level: float) -> Figure:
    return lambda run, name: run[name]['metrics'][str(level)][metric]


def gap(figure: Figure) -> Figure:
    """|ln student - ln teacher|, per image."""

    def distance(run: dict, name: str) -> list[float] | None:
        own, theirs = figure(run, name), figure(run, TEACHER) if TEACHER in run else None
        if name == TEACHER or own is None or theirs is None:
            return None
        return [abs(math.log(max(a, 1e-30) / max(b, 1e-30))) for a, b in zip(own, theirs, strict=True)]

    return distance


def correlation(stage: int) -> Figure:
    """Correlation of ln sigma with ln constant over the images."""

    def figure(run: dict, name: str) -> float | None:
        pair = [stage_figure(stage, key)(run, name) for key in ('sigma', 'constant')]
        return None if None in pair else log_correlation(*pair)

    return figure


def log_correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson correlation of the logarithms; None for fewer than three values, or if one side is constant."""
    logarithms = [[math.log(max(value, 1e-30)) for value in values] for values in (xs, ys)]
    with contextlib.suppress(statistics.StatisticsError):
        return statistics.correlation(*logarithms) if len(xs) > 2 else None
    return None


def spread(runs: Sequence[dict], figure: Figure, name: str) -> tuple[float, float | None] | None:
    """Mean and standard deviation, over the seeds' means if there are several seeds, else over the images."""
    values = [figure(run, name) for run in runs]
    if any(value is None for value in values):
        return None
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    return _moments([_mean(value) for value in values])


def _moments(values: Sequence[float]) -> tuple[float, float | None]:
    if not all(map(math.isfinite, values)):
        return math.nan, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def quantities(result: dict) -> dict[str, list[tuple[str, Figure]]]:
    """Table title to rows of (name, figure)."""
    first = next(iter(result['runs'][0].values()))
    stages, taps = list(first['stages']), list(first['taps'])
    rows = []
    for i, stage in enumerate(stages):
        sigma, normalised, constant = (stage_figure(i, key) for key in ('sigma', 'normalised', 'constant'))
        rows += [
            (f'{stage}: sigma', sigma),
            (f'{stage}: gap of sigma', gap(sigma)),
            (f'{stage}: sigma, normalised', normalised),
            (f'{stage}: gap of sigma, normalised', gap(normalised)),
            (f'{stage}: constant', constant),
            (f'{stage}: gap of the constant', gap(constant)),
            (f'{stage}: bound', stage_figure(i, 'bound')),
            (f'{stage}: correlation of ln sigma with ln constant', correlation(i)),
        ]
    images = [(f'{tap}: constant from the image', image_figure(i)) for i, tap in enumerate(taps)]
    images += [(f'{tap}: gap of it', gap(image_figure(i))) for i, tap in enumerate(taps)]
    changes = [
        (f'{tap}: moved by noise {level:g}, %', change_figure(i, level))
        for i, tap in enumerate(taps)
        for level in result['noise']
    ]
    found = {'Stages': rows, 'From the image': images, 'How far noise moves the features': changes}
    metric = result['metric']
    if metric:
        levels = [0.0, *result['noise']]
        found[f'{metric} under noise'] = [(f'noise {level:g}', metric_figure(metric, level)) for level in levels]
    return found


def report(result: dict) -> str:
    """The tables, in Markdown."""
    runs, names = result['runs'], list(result['runs'][0])
    lines = [f'Mean ± standard deviation over images ({result["images"]} of {result["test_images"]}).']
    if len(runs) > 1:
        over = f'{len(runs)} seeds, of the mean over {result["images"]} images'
        lines = [f'Mean ± standard deviation over {over}; the metric is of all {result["test_images"]}.']
    for title, rows in quantities(result).items():
        cells = {row: [_cell(spread(runs, figure, name)) for name in names] for row, figure in rows}
        lines += _section(title, names, cells)
    lines += paired(result) if len(runs) > 1 else []
    lines += across(result)
    unconverged = sum(run[name]['unconverged'] for run in runs for name in names)
    if unconverged:
        lines += ['', f'{unconverged} local constants did not converge within 64 steps: they are too small.']
    stages = [stage for run in runs for net in run.values() for stage in net['stages'].values()]
    refused = sorted({stage['bound_refused'] for stage in stages if 'bound_refused' in stage})
    return '\n'.join([*lines, *(line for reason in refused for line in ('', reason))])


def paired(result: dict) -> list[str]:
    """Differences between columns, paired by seed, and the number of seeds in which they are above 0."""
    cells: dict[str, list[str]] = {}
    for row, figure in (row for rows in quantities(result).values() for row in rows):
        cells[row] = []
        for pair in result['pairs']:
            values = [[figure(run, name) for run in result['runs']] for name in pair]
            if any(None in side for side in values):
                cells[row].append('–')
                continue
            steps = [_mean(a) - _mean(b) for a, b in zip(*values)]
            change = _cell(_moments(steps), sign='+')
            above = f' ({sum(step > 0 for step in steps)}/{len(steps)})'
            cells[row].append(change if change == 'nan' else change + above)
    title = 'Differences, seed by seed (of how many seeds they are above 0)'
    return _section(title, [f'{name} - {base}' for name, base in result['pairs']], cells)


def across(result: dict) -> list[str]:
    """Correlations over all students between transmitting norms and local constants."""
    runs, names = result['runs'], [name for name in result['runs'][0] if name != TEACHER]
    cells = {}
    for i, stage in enumerate(next(iter(runs[0].values()))['stages']):
        for title, key in (('sigma', 'sigma'), ('sigma, normalised', 'normalised')):
            sides = [[stage_figure(i, side)(run, name) for run in runs for name in names] for side in (key, 'constant')]
            if any(None in side for side in sides):
                continue
            value = log_correlation(*([_mean(x) for x in side] for side in sides))
            if value is not None:
                cells[f'{stage}: ln {title}'] = [f'{value:.2f}']
    students = len(runs) * len(names)
    title = f'Correlation with ln constant over the {students} students'
    return _section(title, ['correlation'], cells) if students >= 4 else []


def _mean(value: float | list[float]) -> float:
    return statistics.fmean(value) if isinstance(value, list) else value


def _section(title: str, head: Sequence[str], cells: dict[str, list[str]]) -> list[str]:
    """A heading and a table of the rows that have any value; nothing if none has."""
    from lckd_mm.reporting import table

    rows = [[row, *values] for row, values in cells.items() if any(value != '–' for value in values)]
    return ['', f'## {title}', '', *table(['', *head], rows, '---:').splitlines()] if rows else []


def _cell(value: tuple[float, float | None] | None, sign: str = '') -> str:
    if value is None:
        return '–'
    mean, deviation = value
    if not math.isfinite(mean):
        return 'nan'
    size = max(abs(mean), deviation or 0)
    form, short = '.2e', '.1e'
    if size < 1e5:
        form = short = f'.{0 if size == 0 else min(4, max(0, 2 - math.floor(math.log10(size))))}f'
    return f'{mean:{sign}{form}}' + (f' ± {deviation:{short}}' if deviation is not None else '')


def draw(result: dict, path: Path) -> None:
    """Plot norms and local constants of every stage, and the response of features and metric to noise."""
    from lckd_mm.reporting.charts import COLOURS, save

    runs, names = result['runs'], list(result['runs'][0])
    first = runs[0][names[0]]
    stages, taps, levels = list(first['stages']), list(first['taps']), result['noise']
    dots = [
        ('transmitting norm σ', stages, [stage_figure(i, 'sigma') for i in range(len(stages))]),
        ('local Lipschitz constant of the stage', stages, [stage_figure(i, 'constant') for i in range(len(stages))]),
        ('local Lipschitz constant from the image', taps, [image_figure(i) for i in range(len(taps))]),
    ]
    last, metric = len(taps) - 1, result['metric']
    curves = [(f'{taps[last]} moved by noise, %', levels, [change_figure(last, level) for level in levels])]
    if metric:
        levels = [0.0, *levels]
        curves.append((metric, levels, [metric_figure(metric, level) for level in levels]))
    colours = dict(zip(names, cycle(COLOURS)))

    def bars(axis, xs: Sequence[float], figures: Sequence[Figure], name: str, **style) -> None:
        points = [(x, spread(runs, value, name)) for x, value in zip(xs, figures)]
        shown = [(x, *point) for x, point in points if point is not None]
        if shown:
            xs, means, deviations = zip(*((x, mean, deviation or 0) for x, mean, deviation in shown))
            axis.errorbar(xs, means, deviations, color=colours[name], label=name, capsize=3, marker='o', **style)

    def plot(figure) -> None:
        panels = list(figure.subplots(2, 3).flat)
        for axis, (title, ticks, figures) in zip(panels, dots):
            axis.set_title(title)
            for k, name in enumerate(names):
                shift = (k - (len(names) - 1) / 2) * 0.7 / len(names)
                bars(axis, [i + shift for i in range(len(ticks))], figures, name, linestyle='')
            axis.set_xticks(range(len(ticks)), ticks)
            axis.set_xlim(-0.5, len(ticks) - 0.5)
            axis.set_yscale('log')
            axis.yaxis.set_major_formatter('{x:g}')
            axis.yaxis.set_minor_formatter('{x:g}')
        for axis, (title, xs, figures) in zip(panels[3:], curves):
            axis.set_title(title)
            for name in names:
                bars(axis, xs, figures, name)
            axis.set_xlabel('noise, in units of the preprocessed image')
        for axis in panels[3 + len(curves) :]:
            axis.axis('off')
        panels[-1].legend(*panels[0].get_legend_handles_labels(), loc='center')

    save(path, (13, 7), plot)


if __name__ == '__main__':
    try:
        from lckd_mm.cli import run_tool
    except ImportError as error:
        sys.exit(f'error: {error}')
    sys.exit(run_tool(main))
