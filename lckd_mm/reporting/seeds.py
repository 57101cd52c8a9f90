"""Means over seeds, differences paired by seed, and Markdown tables of both."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


def spread(values: Sequence[float], form: str = '{:.2f}') -> str:
    """Mean ± sample standard deviation; only the mean for a single value; 'nan' if any value is not finite."""
    if not values:
        return ''
    if not all(map(math.isfinite, values)):
        return 'nan'
    mean = form.format(statistics.mean(values))
    return f'{mean} ± {form.format(statistics.stdev(values))}' if len(values) > 1 else mean


def bootstrap(differences: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of paired differences."""
    import numpy as np
    from scipy.stats import bootstrap as resample

    rng = np.random.default_rng(0)
    interval = resample((np.array(differences),), np.mean, method='percentile', rng=rng).confidence_interval
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of p values for their number; each is at most 1, and none is below that of a smaller one.

    A nan stays nan and does not count.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.
    """
    adjusted, least = list(p_values), 0.0
    finite = [i for i, p in enumerate(p_values) if math.isfinite(p)]
    for rank, i in enumerate(sorted(finite, key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(finite) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def probability(p_value: float) -> str:
    return '< 0.001' if p_value < 0.001 else f'{p_value:.3f}'


@dataclass
class Gain:
    """Differences to a baseline; if no seed is common to both, only that of the means, and ``paired`` is False."""

    values: list[float]
    higher_is_better: bool = True
    paired: bool = True

    @classmethod
    def by_seed(cls, own: Mapping[int, float], base: Mapping[int, float], higher_is_better: bool = True) -> 'Gain':
        """From two mappings of seed to score, on the seeds that both have."""
        return cls([own[seed] - base[seed] for seed in own if seed in base], higher_is_better)

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def wins(self) -> str:
        sign = 1 if self.higher_is_better else -1
        return f'{sum(sign * value > 0 for value in self.values)} of {len(self.values)}' if self.paired else ''

    def interval(self, seeds: int = 5) -> tuple[float, float] | None:
        """The bootstrap interval; None for fewer values than ``seeds``."""
        return bootstrap(self.values) if len(self.values) >= seeds else None

    @property
    def p_value(self) -> float:
        """Of Student's paired t test, two-sided; 1 for fewer than two values, or differences that are all 0."""
        from scipy.stats import t

        if len(self.values) < 2 or not any(self.values):
            return 1.0
        error = statistics.stdev(self.values) / math.sqrt(len(self.values))
        return float(2 * t.sf(abs(self.mean) / error, len(self.values) - 1)) if error else 0.0


def between(interval: tuple[float, float] | None) -> str:
    return '' if interval is None else '{:+.2f} to {:+.2f}'.format(*interval)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = '---') -> str:
    """A Markdown table; ``align`` is the rule below all columns but the first."""
    lines = [f'| {" | ".join(cells)} |' for cells in (head, *rows)]
    return '\n'.join([lines[0], '|---' + f'|{align}' * (len(head) - 1) + '|', *lines[1:]])
