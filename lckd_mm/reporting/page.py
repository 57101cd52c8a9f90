"""The report: one self-contained HTML file, its charts as PNG files, and its numbers as JSON."""

import base64
import json
import math
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mmengine.registry import DefaultScope

from ..config import input_size, plain_model
from ..registry import type_name
from .charts import Plotter
from .comparison import Comparer, sentence
from .costs import figures, weight_bytes
from .runs import LEARNING, Group, find_runs, group_runs, teachers_of
from .seeds import spread

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
        roots: folders of runs, or parents of such folders; the run of a teacher whose checkpoint lies beside its log is
            found by itself. out: the HTML file; the folder ``<its stem>_files`` next to
            it gets the charts and ``figures.json``.
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
    if teachers := teachers_of(groups):
        runs += teachers
        groups = group_runs(runs)
    chosen, left_out = _pictured(groups, methods) if images != 0 else ([], [])
    out = Path(out)
    folder = out.with_name(f'{out.stem}_files')
    folder.mkdir(parents=True, exist_ok=True)
    say(f'{len(runs)} runs of {len(groups)} configs')
    plotter = Plotter(folder, groups)
    table = [_table_row(group, groups, missing) for group in groups]
    _against_teacher(table)
    page: dict[str, Any] = dict(
        roots=[str(root) for root in roots],
        written=datetime.now().strftime('%Y-%m-%d %H:%M'),
        groups=groups,
        runs=len(runs),
        table=table,
        headline=_headline(groups, table),
        validation=[plotter.validation(metric) for metric in dict.fromkeys(g.metric for g in groups if g.metric)],
        losses=[plotter.losses(group) for group in groups if group.terms],
        sigma=plotter.sigma(),
        comparisons=[],
    )
    _missing(groups, missing)
    if not chosen:
        missing.append('Pictures: none were asked for.' if images == 0 else 'Pictures: no run has a checkpoint.')
    comparer = Comparer(images, rows, device)
    for group in chosen:
        say(f'pictures of {group.title}')
        try:
            page['comparisons'].append(comparer.compare(group))
            notes = page['comparisons'][-1].notes
        except Exception as error:  # a host's error must not cost the rest of the page
            notes = [sentence(error)]
        missing += [f'Pictures of {group.title}: {note}' for note in notes]
    if left_out:
        quoted = ' '.join(f"'{g.title}'" if ' ' in g.title else g.title for g in left_out[:3])
        missing.append(f'Pictures: only of {", ".join(g.title for g in chosen)}; for others, --methods {quoted}.')
    page['missing'] = list(dict.fromkeys(missing))
    environment = Environment(
        loader=PackageLoader('lckd_mm.reporting', '.'), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= dict(embedded=embedded, spread=spread)
    out.write_text(environment.get_template('report.html.jinja').render(page), encoding='utf-8')
    (folder / 'figures.json').write_text(json.dumps(_plain(page), indent=1) + '\n')
    return page['missing']


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
    able = [g for g in groups if g.role in LEARNING] or [g for g in groups if g.role != 'teacher'] or groups
    able = [group for group in able if any(run.checkpoint for run in group.runs)]
    best = sorted(able, key=lambda group: group.quality, reverse=True)[:_PICTURED]
    return [g for g in able if g in best], [g for g in able if g not in best]


# ---- the table


def _form(values: Sequence[float], sign: str = '') -> str:
    """Two digits for metrics in percent, four for fractions."""
    percent = max((abs(v) for v in values if math.isfinite(v)), default=0) > 1.5
    return f'{{:{sign}.{2 if percent else 4}f}}'


def _table_row(group: Group, groups: list[Group], missing: list[str]) -> dict[str, Any]:
    """A group's row of the table, as numbers and as text."""
    counted, values, gain = group.counted, group.values(group.metric), group.gain
    finished, total = len(group.finished), len(group.runs)
    sizes = [run.checkpoint.stat().st_size for run in counted if run.checkpoint]
    others = dict.fromkeys(name for run in counted for name in run.last)
    row: dict[str, Any] = dict(
        title=group.title,
        role=group.role,
        config=counted[0].config_name,
        seeds=[run.seed for run in counted],
        status='finished' if finished == total else f'{finished} of {total} finished',
        metric=group.metric or '',
        values=values,
        metric_text=spread(values, _form(values)),
        higher=group.higher,
        gain=gain and gain.mean,
        gain_text='',
        wins=gain.wins if gain else '',
        others={name: spread(group.values(name), _form(group.values(name))) for name in others},
        step_ms=[run.step_ms for run in counted if run.step_ms is not None],
        checkpoint_bytes=sizes,
        **dict.fromkeys(('parameters', 'flops', 'weight_bytes', 'size')),
    )
    if gain:
        row['gain_text'] = _form([*values, *group.alone.values(group.metric)], '+').format(gain.mean).replace('-', '−')
    if not sizes:
        missing.append(f'{group.title}: the checkpoint in last_checkpoint was not found, so its size is unknown.')
    try:
        row |= _costs(group, groups)
    except Exception as error:  # the rest of the row works without the model
        missing.append(f'{group.title}: parameters and FLOPs cannot be counted: {sentence(error)}')
    return row


def _costs(group: Group, groups: list[Group]) -> dict[str, Any]:
    """Parameters, FLOPs and size of the net in a group's checkpoints.

    The image is that of the distillation to which the group belongs, so that student's and teacher's FLOPs compare.
    """
    owner = next((g for g in groups if g.role in LEARNING and group in (g, g.alone, g.teacher)), group)
    with DefaultScope.overwrite_default_scope(group.cfg.get('default_scope', 'mmengine')):
        model = plain_model(group.cfg)
        size = input_size(owner.cfg, model)
        try:
            flops = figures(model, size)['flops']
        except RuntimeError:  # the model cannot process this size
            flops = None
    parameters = sum(p.numel() for p in model.parameters())
    return dict(parameters=parameters, flops=flops, size=size, weight_bytes=weight_bytes(model))


def _against_teacher(table: list[dict]) -> None:
    """Add each row's parameters and FLOPs in percent of the teacher's, if the table has exactly one teacher."""
    teachers = [row for row in table if row['role'] == 'teacher']
    for row in table:
        for key in ('parameters', 'flops'):
            of = teachers[0][key] if len(teachers) == 1 and row['role'] != 'teacher' else None
            row[f'{key}_part'] = f'{100 * row[key] / of:.1f} %' if of and row[key] else ''


def _headline(groups: list[Group], table: list[dict]) -> str:
    """A sentence on the best distilled student."""
    able = [(g, row) for g, row in zip(groups, table) if g.role in LEARNING and g.finished and g.gain]
    if not able:
        return ''
    _, best = max(able, key=lambda pair: pair[0].quality)
    return (
        f'Best distilled student: {best["title"]}, {best["metric"]} {best["metric_text"]}, '
        f'{best["gain_text"]} against the student alone (seeds: {len(best["values"])}).'
    )


# ---- what is missing


def _matches_lipschitz(group: Group) -> bool:
    terms = group.cfg.model.get('terms') or {}
    return any(type_name(term.get('loss', {}).get('type')).endswith('LipschitzLoss') for term in terms.values())


def _missing(groups: list[Group], missing: list[str]) -> None:
    """Add a sentence for everything that the page lacks, and how to get it."""

    monitored = "add dict(type='lckd_mm.LipschitzMonitorHook', on=[taps in order of depth]) to custom_hooks"
    lacking = {
        'No validation is logged by {}, so there is no metric: a config needs val_dataloader, val_cfg and '
        'val_evaluator, and a run that reaches its first validation.': lambda g: not g.metric,
        'Validated only once, so there is no curve: {} (train_cfg.val_interval).': (
            lambda g: g.metric and all(len(run.history.validation) < 2 for run in g.runs)
        ),
        'No loss is logged by {}: runs write scalars.json with LocalVisBackend (vis_backends) every '
        'default_hooks.logger.interval iterations.': lambda g: not g.terms,
        f'No σ is logged by {{}}: {monitored}.': lambda g: _matches_lipschitz(g) and not g.series('sigma_gap'),
    }
    for text, lacks in lacking.items():
        found = [group.title for group in groups if lacks(group)]
        if found:
            missing.append(text.format(', '.join(found)))
    for group in groups:
        for run in group.runs:
            if not run.finished:
                what = 'not in the means of the table' if group.finished else 'in the table as it is'
                missing.append(f'{run.folder}: {run.status}; it is {what}.')
        if group.role in LEARNING and group.alone is None:
            missing.append(
                f'{group.title}: no run of its student alone is in the given folders, so its gain is unknown; train '
                "the student's own config and give its work_dir, too."
            )
        if group.role == 'distilled' and group.teacher is None:
            missing.append(f'{group.title}: no run of its teacher is in the given folders; give its work_dir, too.')
    if {len(group.counted) for group in groups} == {1}:
        missing.append('One seed of each config: without more, no difference here can be told from chance.')


def _plain(page: dict) -> dict:
    """The numbers of a page, without its pictures."""
    pictures, keys = {}, ('seed', 'score', 'reference', 'images', 'of', 'means', 'better', 'worse')
    for c in page['comparisons']:
        pictures[c.title] = {key: getattr(c, key) for key in keys}
        for name in ('regressions', 'improvements'):
            pictures[c.title][name] = [
                dict(image=row.name, change=row.change, scores={net: v.score for net, v in row.verdicts.items()})
                for row in getattr(c, name)
            ]
    runs = [
        dict(group=g.title, folder=str(r.folder), seed=r.seed, status=r.status, finished=r.finished, metrics=r.last)
        for g in page['groups']
        for r in g.runs
    ]
    return dict(written=page['written'], table=page['table'], runs=runs, pictures=pictures, missing=page['missing'])
