"""The charts of reports and studies."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from .runs import Group

# Colour-blind safe palette (Okabe and Ito).
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#8C6BB1', '#A65628')
_DASHES = ('-', (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_SETTINGS = {
    'axes.grid': True, 'grid.alpha': 0.4, 'grid.linewidth': 0.6, 'font.size': 9, 'axes.titlesize': 10,
    'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False, 'legend.fontsize': 8,
    'lines.linewidth': 1.6, 'lines.markersize': 4,
}  # fmt: skip


@dataclass
class Chart:
    """A picture on disk, with title and alternative text."""

    file: Path
    alt: str
    title: str


def save(path: Path, size: tuple[float, float], plot: Callable[[Any], None]) -> Path:
    """Draw a figure with ``plot(figure)`` and write it.

    Raises:
        ModuleNotFoundError: no matplotlib.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    with plt.rc_context(_SETTINGS):
        figure = plt.figure(figsize=size, layout='constrained')
        plot(figure)
        figure.savefig(path, dpi=130)
        plt.close(figure)
    return path


def band(series: Sequence[Mapping[int, float]]) -> tuple[list[int], list[float], list[float]]:
    """Steps, with mean and sample standard deviation over the runs that have a value there (0 for a single run)."""
    steps = sorted({step for one in series for step in one})
    columns = [[one[step] for one in series if step in one] for step in steps]
    return (
        steps,
        [statistics.mean(values) for values in columns],
        [statistics.stdev(values) if len(values) > 1 else 0.0 for values in columns],
    )


def curve(axis, series: Sequence[Mapping[int, float]], color: str, **style) -> None:
    """The mean of some runs, with a band of one standard deviation on each side."""
    steps, means, deviations = band(series)
    axis.plot(steps, means, **{'marker': 'o' if len(steps) == 1 else '', **style}, color=color)
    if any(deviations):
        low, high = ([m + sign * d for m, d in zip(means, deviations)] for sign in (-1, 1))
        if axis.get_yscale() == 'log':
            # A band that reaches below 0 would blow up the log axis.
            low = [max(value, mean / 10) if mean > 0 else mean for value, mean in zip(low, means)]
        axis.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)


def dots(axis, rows: Mapping[str, Sequence[float]], label: str, colours: Mapping[str, str] | None = None) -> None:
    """One row per title: a dot per run, and a bar for the mean."""
    for row, (title, values) in enumerate(rows.items()):
        colour = (colours or {}).get(title, COLOURS[0])
        axis.plot(values, [row] * len(values), 'o', color=colour, alpha=0.6, markersize=5)
        axis.plot([statistics.mean(values)] * 2, [row - 0.32, row + 0.32], color='black', linewidth=2)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel(f'{label}; one dot per run, bars are means')


class Plotter:
    """Draws the charts of some groups into a folder, each group in the same style in every chart."""

    def __init__(self, folder: Path, groups: Sequence[Group]):
        self.folder, self.groups = folder, list(groups)
        colours = cycle([dict(color=colour, linestyle=dash) for dash in _DASHES for colour in COLOURS])
        fixed = dict(teacher=dict(color='black', linestyle='--'), alone=dict(color='#8b949e', linestyle='-'))
        self.styles = {group.title: fixed.get(group.role) or next(colours) for group in groups}
        terms = dict.fromkeys(term for group in groups for term in group.terms)
        self.terms = dict(zip(terms, cycle(COLOURS)))

    def _chart(self, name: str, title: str, alt: str, size: tuple[float, float], plot: Callable) -> Chart:
        return Chart(save(self.folder / f'{slug(name)}.png', size, plot), alt, title)

    def validation(self, metric: str) -> Chart:
        """One metric over the validations, for every group that logs it; dots for runs with a single validation."""
        found = {group.title: group.series(metric, 'validation') for group in self.groups}
        found = {title: series for title, series in found.items() if series}
        shown = [group for group in self.groups if group.title in found]
        checked = [run.history.teacher[metric] for g in shown for run in g.runs if metric in run.history.teacher]

        def curves(figure) -> None:
            axis = figure.subplots()
            for title, series in found.items():
                curve(axis, series, label=f'{title} (n = {len(series)})', **self.styles[title])
            if checked and not any(g.role == 'teacher' for g in shown):
                axis.axhline(statistics.mean(checked), color='black', linestyle=':', linewidth=1, label='teacher')
            axis.set_xlabel(' or '.join(sorted({run.unit for g in shown for run in g.runs}, reverse=True)))
            axis.set_ylabel(metric)
            figure.legend(loc='outside lower center', ncols=3)

        def single(figure) -> None:
            rows = {title: [value for one in series for value in one.values()] for title, series in found.items()}
            dots(figure.subplots(), rows, metric, {title: style['color'] for title, style in self.styles.items()})

        once = all(len(one) < 2 for series in found.values() for one in series)
        return self._chart(
            f'validation-{metric}',
            f'{metric} on the validation set',
            f'{metric} over the validations of {", ".join(found)}',
            (7.6, 0.8 + 0.27 * len(shown) if once else 3.4 + 0.07 * len(shown)),
            single if once else curves,
        )

    def losses(self, group: Group) -> Chart:
        """A group's loss terms over time, and their fractions of the total."""
        terms = group.terms

        def plot(figure) -> None:
            left, right = figure.subplots(1, 2)
            smallest = min(min(band(group.series(term))[1]) for term in terms)
            left.set_yscale('log' if smallest > 0 else 'symlog')
            if len(terms) > 1:
                curve(left, group.series('loss'), label='total', color='black', linewidth=1, linestyle=':')
            for term in terms:
                curve(left, group.series(term), label=term, color=self.terms[term])
            left.set_title('terms, weighted')
            steps, parts = shares(group, terms)
            if len(steps) == 1:
                steps, parts = [steps[0], steps[0] + 1], [[p[0], p[0]] for p in parts]
            right.stackplot(steps, parts, colors=[self.terms[term] for term in terms], alpha=0.85, linewidth=0)
            right.set_ylim(0, 100)
            right.margins(x=0)
            right.set_title('parts of the loss, %')
            for axis in (left, right):
                axis.set_xlabel('iterations')
            figure.legend(*left.get_legend_handles_labels(), loc='outside lower center', ncols=3)

        alt = f'Loss terms of {group.title} and their shares: {", ".join(terms)}'
        return self._chart(f'losses-{group.title}', group.title, alt, (6.6, 3.1 + 0.17 * (len(terms) // 3)), plot)

    def sigma(self) -> Chart | None:
        """Lipschitz constants of student and teacher for each pair of layers; None if no run logged any."""
        logged = dict.fromkeys(k for g in self.groups for r in g.runs for e in r.history.training for k in e)
        keys = [key for key in logged if key.startswith('sigma_student/')]
        if not keys:
            return None
        groups = [group for group in self.groups if any(map(group.series, keys))]
        keys.append('sigma_gap')
        columns = min(3, len(keys))
        rows = math.ceil(len(keys) / columns)

        def plot(figure) -> None:
            axes = figure.subplots(rows, columns, squeeze=False).flat
            for key, axis in zip(keys, axes):  # keys first: zip would otherwise consume one axis too many
                pair = key.partition('/')[2]
                axis.set_yscale('log')
                teachers = []
                for group in groups:
                    style, own = self.styles[group.title], group.series(key)
                    if own:
                        curve(axis, own, label=group.title, **style)
                    connected = group.series(f'sigma_connected/{pair}')
                    if connected and band(connected)[1] != band(own)[1]:
                        curve(axis, connected, label=f'{group.title}, connected', **dict(style, linestyle=':'))
                    teachers += group.series(f'sigma_teacher/{pair}')
                if teachers:
                    curve(axis, teachers, label='teacher', color='black', linestyle='--', linewidth=1.2)
                axis.set_title(f'σ of {pair.replace("-", " → ")}' if pair else 'gap to the teacher')
                axis.set_xlabel('iterations')
            for axis in axes:
                axis.set_visible(False)
            labelled = (zip(*axis.get_legend_handles_labels()) for axis in figure.axes)
            handles = {label: handle for pairs in labelled for handle, label in pairs}
            figure.legend(handles.values(), handles, loc='outside lower center', ncols=4)

        alt = f'Lipschitz constants of student and teacher over training, of {", ".join(keys)}'
        return self._chart('sigma', 'σ of student and teacher', alt, (9.2, 2.7 * rows + 0.5), plot)


def shares(group: Group, terms: Sequence[str]) -> tuple[list[int], list[list[float]]]:
    """Steps, and each term's percentage of the sum of the terms' absolute values, averaged over seeds."""
    parts: list[list[dict[int, float]]] = [[] for _ in terms]
    for run in group.runs:
        series = [run.series(term) for term in terms]
        steps = {step for one in series for step in one}
        sizes = {step: [abs(one.get(step, 0.0)) for one in series] for step in steps}
        for i, part in enumerate(parts):
            part.append({step: 100 * values[i] / (sum(values) or 1.0) for step, values in sizes.items()})
    return band(parts[0])[0], [band(part)[1] for part in parts]


def slug(text: str) -> str:
    """A text made safe for use in a file name."""
    return ''.join(c if c.isalnum() or c in '-_' else '-' for c in text)
