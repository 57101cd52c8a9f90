"""The report: one self-contained HTML file, the same pictures as PNG files, and its numbers as JSON."""

import base64
import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ..config import has_teacher, input_size, is_online, plain_model
from ..evaluation.drawing import side_by_side
from .charts import Chart, Plotter, slug
from .comparison import Comparer, Comparison, Row, sentence
from .costs import figures, weight_bytes
from .runs import Group, find_runs, group_runs, spread

#: Maximum and minimum size of the longer side of pictures, in pixels.
_LARGEST, _SMALLEST = 360, 192
#: Number of methods with pictures by default.
_PICTURED = 3


def write_report(
    roots: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    methods: Sequence[str] | None = None,
    images: int | None = None,
    rows: int = 4,
    device: str = 'cpu',
    say: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Write a report of the runs in some folders.

    Args:
        roots: folders of runs, or parents of such folders. out: the HTML file; the folder ``<its stem>_files`` next to
            it gets the pictures and ``figures.json``.
        methods: titles of the groups whose predictions are drawn; None for the three best.
        images, rows, device: see :class:`~lckd_mm.reporting.comparison.Comparer`; ``images=0`` draws none.
        say: called with progress messages.
    Returns:
        Sentences on what could not be found, as on the page.
    Raises:
        FileNotFoundError: a folder that does not exist or has no run. ValueError: an unknown method.
        ModuleNotFoundError: no matplotlib or jinja2.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    runs, missing = find_runs(roots)
    if not runs:
        raise FileNotFoundError(f'no run can be read: {" ".join(missing)}')
    groups = group_runs(runs)
    chosen, left_out = _pictured(groups, methods)
    out = Path(out)
    folder = out.with_name(f'{out.stem}_files')
    folder.mkdir(parents=True, exist_ok=True)
    say(f'{len(runs)} runs of {len(groups)} configs')
    plotter = Plotter(folder, groups)
    page: dict[str, Any] = dict(
        roots=[str(root) for root in roots],
        written=datetime.now().strftime('%Y-%m-%d %H:%M'),
        groups=groups,
        runs=len(runs),
    )
    page['table'] = [_table_row(group, _size(group, groups), missing) for group in groups]
    _against_teacher(page['table'])
    page['headline'] = _headline(groups)
    page['validation'] = _validation(plotter, groups, missing)
    page['losses'] = _losses(plotter, groups, missing)
    page['sigma'] = plotter.sigma()
    _check_sigma(groups, page['sigma'], missing)
    _check_runs(groups, missing)
    page['comparisons'] = []
    if images == 0:
        missing.append('Pictures: none were asked for.')
        chosen = []
    elif not chosen:
        missing.append('Pictures: there is no run with a checkpoint to predict with.')
    comparer = Comparer(images, rows, device)
    for group in chosen:
        say(f'pictures of {group.title}')
        try:
            comparison = comparer.compare(group)
        except Exception as error:  # a host's error must not cost the rest of the page
            missing.append(f'Pictures of {group.title}: {sentence(error)}')
            continue
        missing += [f'Pictures of {group.title}: {note}' for note in comparison.notes]
        page['comparisons'].append(_shown(comparison, folder))
    if left_out and images != 0:
        missing.append(
            f'Pictures are drawn of {", ".join(g.title for g in chosen)} only; for others say so: '
            f'--methods {" ".join(_quoted(g.title) for g in left_out[:3])}'
        )
    page['missing'] = missing = list(dict.fromkeys(missing))
    environment = Environment(
        loader=PackageLoader('lckd_mm.reporting', '.'), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(embedded=embedded, slug=slug)
    out.write_text(environment.get_template('report.html.jinja').render(page), encoding='utf-8')
    (folder / 'figures.json').write_text(json.dumps(_plain(page), indent=1) + '\n')
    return missing


def embedded(picture: Path | bytes) -> str:
    """A PNG as a data URL."""
    data = picture if isinstance(picture, bytes) else picture.read_bytes()
    return 'data:image/png;base64,' + base64.b64encode(data).decode()


def _pictured(groups: list[Group], methods: Sequence[str] | None) -> tuple[list[Group], list[Group]]:
    """The groups whose predictions are drawn, and those left out."""
    titles = [group.title for group in groups]
    unknown = [name for name in methods or () if name not in titles]
    if unknown:
        raise ValueError(f'--methods: no {", ".join(map(repr, unknown))} here; there are {", ".join(titles)}')
    if methods:
        return [group for group in groups if group.title in methods], []
    able = [g for g in groups if g.role in ('distilled', 'online')] or [g for g in groups if g.role != 'teacher']
    able = [group for group in able or groups if any(run.checkpoint for run in group.runs)]

    best = sorted(able, key=lambda group: group.quality, reverse=True)[:_PICTURED]
    return [g for g in able if g in best], [g for g in able if g not in best]


def _form(values: Sequence[float]) -> str:
    """Two digits for metrics in percent, four for fractions."""
    return '{:.2f}' if max((abs(v) for v in values if math.isfinite(v)), default=0) > 1.5 else '{:.4f}'


def _table_row(group: Group, size: tuple[int, int] | None, missing: list[str]) -> dict[str, Any]:
    """A group's row of the table, as numbers and as text."""
    run, metric = group.counted[0], group.metric
    row: dict[str, Any] = dict(title=group.title, role=group.role, config=run.config_name, metric=metric or '')
    row['seeds'] = [run.seed for run in group.counted]
    row['status'] = (
        'finished' if len(group.finished) == len(group.runs) else f'{len(group.finished)} of {len(group.runs)} finished'
    )
    row['values'], row['higher'] = group.values(metric) if metric else [], group.higher
    row['metric_text'] = spread(row['values'], _form(row['values']))
    row.update(_gain(group))
    row['others'] = {
        name: spread(group.values(name), _form(group.values(name)))
        for name in dict.fromkeys(k for one in group.counted for k in one.last)
    }
    times = [1e3 * one.step_seconds for one in group.counted if one.step_seconds is not None]
    row['step_ms'], row['step_text'] = times, spread(times, '{:.1f}')
    sizes = [one.checkpoint.stat().st_size for one in group.counted if one.checkpoint]
    row['checkpoint_bytes'] = sizes
    row['checkpoint_text'] = f'{statistics.mean(sizes) / 1e6:.2f}' if sizes else ''
    if not sizes:
        missing.append(f'{group.title}: no checkpoint is where last_checkpoint says, so its size is not known.')
    row.update(parameters=None, flops=None, weight_bytes=None, size=None)
    try:
        row.update(_costs(run.cfg, size))
    except Exception as error:  # the rest of the row works without the model
        missing.append(f'{group.title}: parameters and FLOPs cannot be counted: {sentence(error)}')
    return row


def _size(group: Group, groups: list[Group]) -> tuple[int, int] | None:
    """The image size of the distillation to which a group belongs, so that student's and teacher's FLOPs compare."""
    related = [g for g in groups if group in (g, g.alone, g.teacher) and g.role in ('distilled', 'online')]
    sizes = [g.runs[0].cfg.model.get('dry_run_size') for g in related]
    size = next((size for size in sizes if size), None)
    return (size, size) if isinstance(size, int) else size and tuple(size)


def _costs(cfg: Config, size: tuple[int, int] | None) -> dict[str, Any]:
    """Parameters, FLOPs and size of the net in a run's checkpoint."""
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        model = plain_model(cfg)
        size = size or input_size(cfg, model)
        try:
            flops = figures(model, size)['flops']
        except RuntimeError:  # the model cannot process this size
            flops = None
    parameters = sum(p.numel() for p in model.parameters())
    return dict(parameters=parameters, flops=flops, size=size, weight_bytes=weight_bytes(model))


def _gain(group: Group) -> dict[str, Any]:
    """The gain over the student alone, on the seeds that both have."""
    metric, alone = group.metric, group.alone
    if not alone or not metric or alone.metric != metric:
        return dict(gain=None, gain_text='', wins='')
    own, other = group.values(metric), alone.values(metric)
    if not own or not other or not all(map(math.isfinite, [*own, *other])):
        return dict(gain=None, gain_text='', wins='')
    by_seed, theirs = (_by_seed(side, metric) for side in (group, alone))
    values = [by_seed[seed] - theirs[seed] for seed in by_seed if seed in theirs]
    better = 1 if group.higher else -1
    wins = f'{sum(better * value > 0 for value in values)} of {len(values)}' if values else ''
    values = values or [statistics.mean(own) - statistics.mean(other)]
    digits = 4 if _form([*own, *other]) == '{:.4f}' else 2
    text = f'{statistics.mean(values):+.{digits}f}'.replace('-', '−')
    return dict(gain=statistics.mean(values), gain_text=text, wins=wins)


def _by_seed(group: Group, metric: str) -> dict[int, float]:
    """Seed to metric, for seeds with exactly one run."""
    seeds = [run.seed for run in group.counted]
    return {
        run.seed: run.last[metric]
        for run in group.counted
        if metric in run.last and run.seed is not None and seeds.count(run.seed) == 1
    }


def _against_teacher(table: list[dict]) -> None:
    """Add each row's parameters and FLOPs in percent of the teacher's, if the table has exactly one teacher."""
    teachers = [row for row in table if row['role'] == 'teacher']
    for row in table:
        for key in ('parameters', 'flops'):
            of = teachers[0][key] if len(teachers) == 1 and row['role'] != 'teacher' else None
            row[f'{key}_part'] = f'{100 * row[key] / of:.1f} %' if of and row[key] else ''


def _headline(groups: list[Group]) -> str:
    """A sentence on the best distilled student."""
    rows = []
    for group in groups:
        gain = _gain(group)['gain']
        if group.role in ('distilled', 'online') and gain is not None and group.finished:
            rows.append((group.quality, group, gain))
    if not rows:
        return ''
    _, group, gain = max(rows, key=lambda row: row[0])
    values = group.values(group.metric)
    form = _form(values)
    alone = group.alone.values(group.metric)
    return (
        f'Best distilled student: {group.title}, {group.metric} {spread(values, form)} over {len(values)} '
        f'seed{"s" * (len(values) != 1)}; alone it has {spread(alone, form)}, '
        f'a difference of {_gain(group)["gain_text"]}.'
    )


def _validation(plotter: Plotter, groups: list[Group], missing: list[str]) -> list[Chart]:
    metrics = dict.fromkeys(group.metric for group in groups if group.metric)
    silent = [group.title for group in groups if not group.metric]
    once = [
        group.title for group in groups if group.metric and all(len(run.history.validation) < 2 for run in group.runs)
    ]
    if silent:
        missing.append(
            f'No validation is logged by {", ".join(silent)}, so there is no metric: a config needs val_dataloader, '
            'val_cfg and val_evaluator, and a run that comes to its first validation.'
        )
    if once:
        missing.append(f'Validated once only, so that there is no curve: {", ".join(once)} (train_cfg.val_interval).')
    return [plotter.validation(metric) for metric in metrics]


def _losses(plotter: Plotter, groups: list[Group], missing: list[str]) -> list[Chart]:
    charts, silent = [], []
    for group in groups:
        if group.terms:
            charts.append(plotter.losses(group))
        else:
            silent.append(group.title)
    if silent:
        missing.append(
            f'No loss is logged by {", ".join(silent)}: runs write scalars.json through LocalVisBackend (vis_backends) '
            'every default_hooks.logger.interval iterations.'
        )
    return charts


def _check_sigma(groups: list[Group], chart: Chart | None, missing: list[str]) -> None:
    silent = [
        group.title
        for group in groups
        if has_teacher(group.runs[0].cfg) and not any('sigma_gap' in e for r in group.runs for e in r.history.training)
    ]
    cure = "add dict(type='lckd_mm.LipschitzMonitorHook', on=[taps in order of depth]) to the config's custom_hooks"
    if silent:
        missing.append(f'No σ is logged by {", ".join(silent)}: {cure}.')
    elif chart is None:
        online = any(is_online(group.runs[0].cfg) for group in groups)
        reason = 'nets that learn together have no teacher' if online else 'no run here is a distillation'
        missing.append(f'No σ: {reason}; of a distillation, {cure}.')


def _check_runs(groups: list[Group], missing: list[str]) -> None:
    for group in groups:
        for run in group.runs:
            if not run.finished:
                what = 'not in the means of the table' if group.finished else 'in the table as it stands'
                missing.append(f'{run.folder}: {run.status}; it is {what}.')
            if run.history.damaged_lines:
                missing.append(f'{run.folder}: {run.history.damaged_lines} damaged lines of scalars.json are left out.')
        if group.role in ('distilled', 'online') and group.alone is None:
            missing.append(
                f'{group.title}: no run of its student alone is among the folders given, so no gain can be told; train '
                "the student's own config and name its work_dir, too."
            )
        if group.role == 'distilled' and group.teacher is None:
            missing.append(f'{group.title}: no run of its teacher is among the folders given; name its work_dir, too.')
    seeds = {len(group.counted) for group in groups}
    if seeds == {1}:
        missing.append('One seed of each config: without more, no difference here can be told from chance.')


def _shown(comparison: Comparison, folder: Path) -> dict[str, Any]:
    """A comparison with its panels as PNGs; also writes each list as one picture to disk."""
    lists = {}
    for name, rows in (('regressions', comparison.regressions), ('improvements', comparison.improvements)):
        lists[name] = [
            dict(row=row, panels={title: _png(_sized(panel)) for title, panel in row.panels.items()}) for row in rows
        ]
        if rows:
            strips = [side_by_side({k: _sized(v) for k, v in row.panels.items()}) for row in rows]
            if comparison.host == 'mmpretrain':
                strips = [_scan(row) for row in rows]
            width = max(strip.shape[1] for strip in strips)
            strips = [np.pad(s, ((0, 6), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
            (folder / f'pictures-{slug(comparison.title)}-{name}.png').write_bytes(_png(np.concatenate(strips)))
    return dict(comparison=comparison, **lists)


def _scan(row: Row) -> np.ndarray:
    verdicts = {f'{name}: {verdict.label}': row.panels['input'] for name, verdict in row.verdicts.items()}
    return side_by_side({f'true: {row.truth}': row.panels['input'], **verdicts})


def _sized(image: np.ndarray) -> np.ndarray:
    """Enlarge small pictures by an integer factor, and shrink large ones."""
    longest = max(image.shape[:2])
    if longest > _LARGEST:
        return cv2.resize(image, None, fx=_LARGEST / longest, fy=_LARGEST / longest, interpolation=cv2.INTER_AREA)
    times = max(1, round(_SMALLEST / longest))
    return cv2.resize(image, None, fx=times, fy=times, interpolation=cv2.INTER_NEAREST)


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode('.png', np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def _plain(page: dict) -> dict:
    """The numbers of a page, without its pictures."""
    pictures = {}
    for shown in page['comparisons']:
        c: Comparison = shown['comparison']
        lists = {
            name: [
                dict(image=r.name, change=r.change, scores={k: v.score for k, v in r.verdicts.items()})
                for r in getattr(c, name)
            ]
            for name in ('regressions', 'improvements')
        }
        pictures[c.title] = dict(
            seed=c.seed, score=c.score, reference=c.reference, images=c.images, of=c.of, means=c.means,
            better=c.better, worse=c.worse, **lists,
        )  # fmt: skip
    runs = [
        dict(group=g.title, folder=str(r.folder), seed=r.seed, status=r.status, finished=r.finished, metrics=r.last)
        for g in page['groups']
        for r in g.runs
    ]
    return dict(written=page['written'], table=page['table'], runs=runs, pictures=pictures, missing=page['missing'])


def _quoted(text: str) -> str:
    return f"'{text}'" if ' ' in text else text
