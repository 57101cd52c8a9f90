"""The charts of a report, each drawn in a light and a dark theme."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from .runs import Group, Run

# Colour-blind safe palette (Okabe and Ito).
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#8C6BB1', '#A65628')
_DASHES = ('-', (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_THEMES = {
    '': dict(ink='#1f2328', paper='#ffffff', grid='#d0d7de'),
    '-dark': dict(ink='#e6edf3', paper='#161b22', grid='#3d444d'),
}


@dataclass
class Chart:
    """A picture on disk in both themes, with title and alternative text."""

    light: Path
    dark: Path
    alt: str
    title: str


def styles(groups: Sequence[Group]) -> dict[str, dict]:
    """A colour and line style for each group, the same in every chart."""
    colours = cycle([(colour, dash) for dash in _DASHES for colour in _COLOURS])
    found = {}
    for group in groups:
        if group.role == 'teacher':
            found[group.title] = dict(color='ink', linestyle='--')
        elif group.role == 'alone':
            found[group.title] = dict(color='#8b949e', linestyle='-')
        else:
            colour, dash = next(colours)
            found[group.title] = dict(color=colour, linestyle=dash)
    return found


def band(series: Sequence[dict[int, float]]) -> tuple[list[int], list[float], list[float]]:
    """Steps, with mean and sample standard deviation over the runs that have a value there (0 for a single run)."""
    steps = sorted({step for one in series for step in one})
    columns = [[one[step] for one in series if step in one] for step in steps]
    return (
        steps,
        [statistics.mean(values) for values in columns],
        [statistics.stdev(values) if len(values) > 1 else 0.0 for values in columns],
    )


class Plotter:
    """Draws the charts of some groups into a folder.

    Raises:
        ModuleNotFoundError: no matplotlib.
    """

    def __init__(self, folder: Path, groups: Sequence[Group]):
        import matplotlib

        matplotlib.use('Agg')
        self.folder, self.groups, self.styles = folder, list(groups), styles(groups)
        terms = list(dict.fromkeys(term for group in groups for term in group.terms))
        self.terms = dict(zip(terms, cycle(_COLOURS)))

    def _draw(self, name: str, title: str, alt: str, size: tuple[float, float], plot: Callable) -> Chart:
        import matplotlib.pyplot as plt

        files = []
        for suffix, theme in _THEMES.items():
            ink, paper, grid = theme['ink'], theme['paper'], theme['grid']
            settings = {
                'text.color': ink, 'axes.labelcolor': ink, 'axes.edgecolor': grid, 'xtick.color': ink,
                'ytick.color': ink, 'figure.facecolor': paper, 'axes.facecolor': paper, 'savefig.facecolor': paper,
                'grid.color': grid, 'axes.grid': True, 'grid.alpha': 0.6, 'grid.linewidth': 0.6, 'font.size': 9,
                'axes.titlesize': 10, 'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False,
                'legend.fontsize': 8, 'lines.linewidth': 1.6,
            }  # fmt: skip
            with plt.rc_context(settings):
                figure = plt.figure(figsize=size, layout='constrained')
                plot(figure, ink)
                file = self.folder / f'{name}{suffix}.png'
                figure.savefig(file, dpi=130)
                plt.close(figure)
            files.append(file)
        return Chart(*files, alt, title)

    def _curve(self, axis, series: Sequence[dict[int, float]], ink: str, **style) -> None:
        """The mean of some runs, with a band of one standard deviation on each side."""
        steps, means, deviations = band(series)
        style = dict(style, color=ink if style.get('color') == 'ink' else style.get('color'))
        if len(steps) == 1:
            style['marker'] = 'o'
        axis.plot(steps, means, **style)
        if any(deviations):
            low, high = ([m + sign * d for m, d in zip(means, deviations)] for sign in (-1, 1))
            if axis.get_yscale() == 'log':
                # A band that reaches below 0 would blow up the log axis.
                low = [max(value, mean / 10) if mean > 0 else mean for value, mean in zip(low, means)]
            axis.fill_between(steps, low, high, color=style['color'], alpha=0.18, linewidth=0)

    def validation(self, metric: str) -> Chart:
        """Curves of one metric over the validations, for every group that logs it."""
        shown = [g for g in self.groups if any(run.validations(metric) for run in g.runs)]
        if all(len(run.validations(metric)) < 2 for g in shown for run in g.runs):
            return self._dots(metric, shown)
        checked = [run.history.teacher[metric] for g in shown for run in g.runs if metric in run.history.teacher]
        units = {run.unit for g in shown for run in g.runs}

        def plot(figure, ink):
            axis = figure.subplots()
            for group in shown:
                curves = [c for c in (run.validations(metric) for run in group.runs) if c]
                self._curve(axis, curves, ink, label=f'{group.title} (n = {len(curves)})', **self.styles[group.title])
            if checked and not any(g.role == 'teacher' for g in shown):
                axis.axhline(statistics.mean(checked), color=ink, linestyle=':', linewidth=1, label='teacher')
            axis.set_xlabel(' or '.join(sorted(units, reverse=True)))
            axis.set_ylabel(metric)
            figure.legend(loc='outside right upper' if len(shown) < 16 else 'outside lower center',
                          ncols=1 if len(shown) < 16 else 3)  # fmt: skip

        title = f'{metric} on the validation set'
        alt = f'Curves of {metric} over the validations of {", ".join(g.title for g in shown)}'
        height = 3.4 if len(shown) < 16 else 3.4 + 0.09 * len(shown)
        return self._draw(f'validation-{slug(metric)}', title, alt, (7.6, height), plot)

    def _dots(self, metric: str, shown: Sequence[Group]) -> Chart:
        """For runs with a single validation: one dot per run, and a bar for the mean."""

        def plot(figure, ink):
            axis = figure.subplots()
            for row, group in enumerate(shown):
                values = [value for run in group.runs for value in run.validations(metric).values()]
                colour = self.styles[group.title]['color']
                axis.plot(values, [row] * len(values), 'o', color=ink if colour == 'ink' else colour, alpha=0.6)
                axis.plot([statistics.mean(values)] * 2, [row - 0.32, row + 0.32], color=ink, linewidth=2)
            axis.set_yticks(range(len(shown)), [group.title for group in shown])
            axis.set_ylim(len(shown) - 0.4, -0.6)
            axis.set_xlabel(f'{metric}; a dot a run, a bar the mean')

        title = f'{metric} on the validation set'
        alt = f'{metric} of each run of {", ".join(g.title for g in shown)}'
        return self._draw(f'validation-{slug(metric)}', title, alt, (7.6, 0.8 + 0.27 * len(shown)), plot)

    def losses(self, group: Group) -> Chart:
        """A group's loss terms over time, and their fractions of the total."""
        terms = group.terms
        totals = group.series('loss')

        def plot(figure, ink):
            left, right = figure.subplots(1, 2)
            smallest = min(min(band(group.series(term))[1]) for term in terms)
            left.set_yscale('log' if smallest > 0 else 'symlog')
            if len(terms) > 1:
                self._curve(left, totals, ink, label='total', color='ink', linewidth=1, linestyle=':')
            for term in terms:
                self._curve(left, group.series(term), ink, label=term, color=self.terms[term])
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
        height = 3.1 + 0.17 * (len(terms) // 3)
        return self._draw(f'losses-{slug(group.title)}', group.title, alt, (6.6, height), plot)

    def sigma(self) -> Chart | None:
        """Lipschitz constants of student and teacher for each pair of layers; None if no run logged any."""
        groups = [g for g in self.groups if any(k.startswith('sigma_student/') for r in g.runs for k in _keys(r))]
        if not groups:
            return None
        pairs = dict.fromkeys(
            k.partition('/')[2] for g in groups for r in g.runs for k in _keys(r) if k.startswith('sigma_student/')
        )
        keys = [*(f'sigma_student/{pair}' for pair in pairs), 'sigma_gap']
        columns = min(3, len(keys))
        rows = math.ceil(len(keys) / columns)

        def plot(figure, ink):
            axes = figure.subplots(rows, columns, squeeze=False).flat
            for key, axis in zip(keys, axes):  # keys first: zip would otherwise consume one axis too many
                pair = key.partition('/')[2]
                axis.set_yscale('log')
                for group in groups:
                    style = self.styles[group.title]
                    if group.series(key):
                        self._curve(axis, group.series(key), ink, label=group.title, **style)
                    connected = group.series(f'sigma_connected/{pair}') if pair else []
                    if connected and band(connected)[1] != band(group.series(key))[1]:
                        label = f'{group.title}, connected'
                        self._curve(axis, connected, ink, label=label, **dict(style, linestyle=':'))
                teachers = [one for group in groups for one in group.series(f'sigma_teacher/{pair}')] if pair else []
                if teachers:
                    self._curve(axis, teachers, ink, label='teacher', color='ink', linestyle='--', linewidth=1.2)
                axis.set_title(f'σ of {pair.replace("-", " → ")}' if pair else 'gap to the teacher')
                axis.set_xlabel('iterations')
            for axis in axes:
                axis.set_visible(False)
            handles = {}
            for axis in figure.axes:
                for handle, label in zip(*axis.get_legend_handles_labels()):
                    handles.setdefault(label, handle)
            figure.legend(handles.values(), handles, loc='outside lower center', ncols=4)

        alt = f'Lipschitz constants of student and teacher over training, of {", ".join(pairs)}'
        return self._draw('sigma', 'σ of student and teacher', alt, (9.2, 2.7 * rows + 0.5), plot)


def shares(group: Group, terms: Sequence[str]) -> tuple[list[int], list[list[float]]]:
    """Steps, and each term's percentage of the sum of the terms' absolute values, averaged over seeds."""
    parts: dict[str, list[dict[int, float]]] = {term: [] for term in terms}
    for run in group.runs:
        series = {term: run.series(term) for term in terms}
        for term in terms:
            part = {}
            for step in sorted({step for one in series.values() for step in one}):
                whole = sum(abs(one.get(step, 0.0)) for one in series.values())
                part[step] = 100 * abs(series[term].get(step, 0.0)) / whole if whole else 0.0
            parts[term].append(part)
    steps = band(parts[terms[0]])[0]
    return steps, [band(parts[term])[1] for term in terms]


def _keys(run: Run) -> dict[str, None]:
    return dict.fromkeys(key for entry in run.history.training for key in entry)


def slug(text: str) -> str:
    """A text made safe for use in a file name."""
    return ''.join(c if c.isalnum() or c in '-_' else '-' for c in text)
