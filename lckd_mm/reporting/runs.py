"""Finds, reads and groups runs on disk, finished or interrupted: one group per method, with its seeds."""

import contextlib
import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..config import has_teacher, is_online, student_config
from ..config import teachers_of as config_teachers
from ..errors import one_line
from ..hosts import load_config, read_model_config
from ..registry import resolved
from ..storage.files import last_checkpoint
from .seeds import Gain

_TIMESTAMP = re.compile(r'\d{8}_\d{6}')
_COUNTERS = ('step', 'iter', 'epoch', 'time', 'data_time', 'memory')
# A run's main metric is the first of these that it has logged.
METRICS = ('mIoU', 'accuracy/top1', 'pascal_voc/mAP', 'coco/bbox_mAP', 'single-label/f1-score')
# Words in the names of metrics for which lower is better.
_LOWER = {'loss', 'error', 'mae', 'mse', 'rmse', 'nme', 'rel', 'silog', 'log10', 'cev', 'sde'}
# Settings that differ between the runs of one group.
_OF_ONE_RUN = (
    'work_dir', 'launcher', 'experiment_name', 'resume', 'randomness.seed', 'model.teacher.checkpoint',
    'default_hooks.distillation.fitted',
)  # fmt: skip
LEARNING = ('distilled', 'online')
ROLES = ('teacher', 'alone', 'plain', *LEARNING)


@dataclass
class History:
    """The logs of all sessions of a run (from the Visualizer's local backend), merged.

    ``training`` and ``validation`` have one entry per step, in order; validation steps are iterations, or epochs for
    epoch-based loops. ``teacher``: the last metrics of TeacherCheckHook.
    """

    training: list[dict] = field(default_factory=list)
    validation: list[dict] = field(default_factory=list)
    teacher: dict[str, float] = field(default_factory=dict)
    sessions: int = 0


def read_history(folder: Path, by_epoch: bool = False, val_interval: int = 1, total: int | None = None) -> History:
    """Merge the ``scalars.json`` of every session of a work_dir.

    Where a later session repeats steps, its entries replace those of the earlier one from there on. Iteration-based
    loops may log a validation with step 0 (an epoch); its step is inferred from the training entries around it.

    Args:
        val_interval, total: of the loop; needed to infer such steps.
    """
    history = History()
    training: dict[int, dict] = {}
    validation: dict[int, dict] = {}
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        history.sessions += 1
        entries = _entries(file)
        # A resumed session may start with a validation; its first training entry shows where it resumed.
        steps = [int(entry.get('step', 0)) for entry in entries if 'loss' in entry]
        begun, last = False, steps[0] - 1 if steps else max(training, default=0)
        for entry in entries:
            step = int(entry.get('step', 0))
            if 'loss' in entry:
                if not begun:
                    again = int(entry.get('epoch', step)) if by_epoch else step
                    training = {k: v for k, v in training.items() if k < step}
                    validation = {k: v for k, v in validation.items() if k < again}
                training[step], last, begun = entry, step, True
                continue
            metrics = {k: v for k, v in entry.items() if k not in _COUNTERS and isinstance(v, (int, float))}
            own = {k: v for k, v in metrics.items() if not k.startswith('teacher/')}
            if len(own) < len(metrics):
                history.teacher = {k.removeprefix('teacher/'): v for k, v in metrics.items() if k not in own}
            if own:
                if not by_epoch and step == 0:
                    # Before any training a session can only repeat a validation that was cut off.
                    intervals = math.ceil(last / val_interval) if begun else last // val_interval
                    step = max(intervals, 1) * val_interval
                    step = min(step, total) if total else step
                validation[step] = dict(own, step=step)
    history.training = [training[step] for step in sorted(training)]
    history.validation = [validation[step] for step in sorted(validation)]
    return history


def _entries(file: Path) -> list[dict]:
    """The entries of a scalars file, without unreadable lines, such as the last one of a killed run."""
    entries = []
    for line in file.read_text(errors='replace').splitlines():
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]


class Run:
    """One work_dir written by ``tools/train.py``.

    Args:
        folder: has the dumped config, ``<timestamp>/vis_data/scalars.json``, checkpoints and ``last_checkpoint``.
    Raises:
        FileNotFoundError, ValueError: no config, an unreadable one, or a folder without any training.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        dumped = sorted(folder.glob('*.py'), key=lambda file: file.stat().st_mtime)
        # A test in the same folder overwrites the dumped config with the student's alone; the session's copy remains.
        kept = [file.with_name('config.py') for file in sorted(folder.glob('*/vis_data/scalars.json'))]
        found = [*dumped, *(file for file in kept if file.is_file())]
        if not found:
            raise FileNotFoundError(f'{folder}: no config that a Runner has dumped')
        self.config_name = (dumped or found)[-1].stem
        self.cfg = load_config(str(found[-1]), str(folder))
        if not isinstance(self.cfg.get('model'), dict):
            raise ValueError(f'{folder}: its config has no model')
        loop = self.cfg.get('train_cfg') or {}
        kind = str(loop.get('type', ''))
        self.by_epoch = kind.endswith('EpochBasedTrainLoop') or ('type' not in loop and loop.get('by_epoch', True))
        self.total = loop.get('max_epochs' if self.by_epoch else 'max_iters')
        self.history = read_history(folder, self.by_epoch, int(loop.get('val_interval', 1)), self.total)
        if not self.history.training and not self.history.validation and self.checkpoint is None:
            raise FileNotFoundError(f'{folder}: no training has logged or saved anything there')

    @property
    def seed(self) -> int | None:
        return (self.cfg.get('randomness') or {}).get('seed')

    @property
    def unit(self) -> str:
        return 'epochs' if self.by_epoch else 'iterations'

    @cached_property
    def checkpoint(self) -> Path | None:
        return last_checkpoint(self.folder)

    @cached_property
    def done(self) -> int:
        """Completed epochs or iterations, according to the log, the validations or the last checkpoint."""
        # The log has the epoch in progress, which may be incomplete.
        known = [int(e.get('epoch', 0)) - 1 if self.by_epoch else e['step'] for e in self.history.training[-1:]]
        known += [entry['step'] for entry in self.history.validation[-1:]]
        numbered = re.search(r'(iter|epoch)_(\d+)', self.checkpoint.name if self.checkpoint else '')
        if numbered and (numbered[1] == 'epoch') == self.by_epoch:
            known.append(int(numbered[2]))
        return max(known, default=0)

    @property
    def finished(self) -> bool:
        return self.total is not None and self.done >= self.total

    @property
    def status(self) -> str:
        resumed = f', in {self.history.sessions} sessions' if self.history.sessions > 1 else ''
        if self.finished:
            return f'finished, {self.total} {self.unit}{resumed}'
        return f'unfinished, {self.done} of {self.total or "?"} {self.unit}{resumed} (interrupted, or still running)'

    @property
    def last(self) -> dict[str, float]:
        """The metrics of the last validation."""
        return {k: v for k, v in (self.history.validation or [{}])[-1].items() if k != 'step'}

    @property
    def step_ms(self) -> float | None:
        """Median time of an iteration over the log entries, including data loading, in milliseconds."""
        times = [entry['time'] for entry in self.history.training if 'time' in entry]
        return 1e3 * statistics.median(times) if times else None

    def _saving(self, key: str) -> list[str]:
        """An option of the checkpoint hook, as a list."""
        value = ((self.cfg.get('default_hooks') or {}).get('checkpoint') or {}).get(key)
        return [value] if isinstance(value, str) else list(value or [])

    @property
    def metric(self) -> str | None:
        """The name of the run's main metric."""
        return next((name for name in (*self._saving('save_best'), *METRICS, *self.last) if name in self.last), None)

    def higher_is_better(self, metric: str) -> bool:
        """According to the rule of ``save_best`` if it covers this metric, else from the metric's name."""
        wanted, rules = self._saving('save_best'), self._saving('rule')
        if wanted == ['auto']:
            wanted = list(self.last)[:1]
        if metric in wanted and rules:
            return rules[min(wanted.index(metric), len(rules) - 1)] != 'less'
        return not _LOWER & set(re.split(r'[^a-z0-9]+', metric.lower()))

    def series(self, key: str, of: str = 'training') -> dict[int, float]:
        """A scalar of the training or validation by step; missing and non-finite entries are left out."""
        return {e['step']: e[key] for e in getattr(self.history, of) if math.isfinite(e.get(key, math.nan))}

    @property
    def terms(self) -> list[str]:
        """The loss terms: every logged name with "loss" in it, except the total if there are others."""
        names = dict.fromkeys(k for e in self.history.training for k in e if 'loss' in k)
        return [name for name in names if self.series(name) and (name != 'loss' or len(names) == 1)]


def find_runs(roots: Iterable[str | os.PathLike]) -> tuple[list[Run], list[str]]:
    """Every run in some folders, and a sentence for each that cannot be read.

    Raises:
        FileNotFoundError: a folder does not exist or has no run.
    """
    folders: dict[Path, Path] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise FileNotFoundError(f'no folder {str(root)!r}; give the --work-dir of a training, or a folder of such')
        found = []
        for folder, below, _ in os.walk(root):
            sessions = set(filter(_TIMESTAMP.fullmatch, below))
            below[:] = sorted(set(below) - sessions)
            found += [Path(folder)] * bool(sessions)
        if not found:
            raise FileNotFoundError(
                f'{str(root)!r} holds no run: none of its folders has a <timestamp> folder, which tools/train.py '
                'writes into its --work-dir'
            )
        for folder in found:
            folders.setdefault(folder.resolve(), folder)
    runs, notes = [], []
    for folder in folders.values():
        try:
            runs.append(Run(folder))
        except (ValueError, FileNotFoundError, ImportError) as error:
            notes.append(f'Left out: {one_line(error)}.')
    return runs, notes


@dataclass
class Group:
    """The runs of one config; they differ only in the seed and the teacher's checkpoint."""

    runs: list[Run]
    title: str = ''
    role: str = 'plain'
    #: For a distillation: the runs of its student alone, and those of its teacher.
    alone: 'Group | None' = None
    teacher: 'Group | None' = None

    @property
    def cfg(self) -> Config:
        return self.runs[0].cfg

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.finished]

    @property
    def counted(self) -> list[Run]:
        """The runs that count in the numbers: the finished ones, or all if none is finished."""
        return self.finished or self.runs

    @property
    def metric(self) -> str | None:
        return next((run.metric for run in self.counted if run.metric), None)

    @property
    def higher(self) -> bool:
        """Whether a higher metric is better."""
        return self.metric is None or self.counted[0].higher_is_better(self.metric)

    @property
    def quality(self) -> float:
        """The metric's mean, negated if lower is better; minus infinity if unknown."""
        values = self.values(self.metric)
        if not values or not all(map(math.isfinite, values)):
            return -math.inf
        return statistics.mean(values) * (1 if self.higher else -1)

    def values(self, metric: str | None) -> list[float]:
        return [run.last[metric] for run in self.counted if metric in run.last]

    def by_seed(self, metric: str) -> dict[int, float]:
        """Seed to metric, for seeds with exactly one run."""
        seeds = [run.seed for run in self.counted]
        once = (run for run in self.counted if run.seed is not None and seeds.count(run.seed) == 1)
        return {run.seed: run.last[metric] for run in once if metric in run.last}

    @property
    def gain(self) -> Gain | None:
        """The gain over the student alone, on the seeds that both have; None if it is unknown."""
        metric = self.metric
        if not self.alone or not metric or self.alone.metric != metric:
            return None
        own, other = self.values(metric), self.alone.values(metric)
        if not own or not other or not all(map(math.isfinite, [*own, *other])):
            return None
        gain = Gain.by_seed(self.by_seed(metric), self.alone.by_seed(metric), self.higher)
        return gain if gain.values else Gain([statistics.mean(own) - statistics.mean(other)], self.higher, paired=False)

    def series(self, key: str, of: str = 'training') -> list[dict[int, float]]:
        return [series for run in self.runs if (series := run.series(key, of))]

    @property
    def terms(self) -> list[str]:
        return list(dict.fromkeys(term for run in self.runs for term in run.terms))


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs by config, sorted by seed; teachers first, then students alone, then distilled ones."""
    groups: dict[str, Group] = {}
    for run in runs:
        groups.setdefault(fingerprint(run.cfg), Group([])).runs.append(run)
    found = list(groups.values())
    for group in found:
        group.runs.sort(key=lambda run: (run.seed is None, run.seed or 0, str(run.folder)))
    _name(found)
    _relate(found)
    return sorted(found, key=lambda group: ROLES.index(group.role))


def teachers_of(groups: Sequence[Group]) -> list[Run]:
    """The runs of teachers that are not among the groups, from the folders in which their checkpoints lie."""
    found: dict[Path, Run] = {}
    for run in (run for group in groups if group.role == 'distilled' and group.teacher is None for run in group.runs):
        file = Path(_teacher(run).get('checkpoint') or '')
        folder = file.parent.resolve()
        if folder not in found and file.is_file() and any(folder.glob('*/vis_data/scalars.json')):
            with contextlib.suppress(ValueError, KeyError, TypeError, FileNotFoundError, ImportError):
                teacher = Run(file.parent)
                # One that learned from another net would be listed as a distillation to compare.
                if not (has_teacher(teacher.cfg) or is_online(teacher.cfg)):
                    found[folder] = teacher
    return list(found.values())


def fingerprint(cfg: Config) -> str:
    """A config as text, without the settings that differ between runs of one group."""
    plain = cfg.to_dict()
    if plain.get('resume'):
        plain['load_from'] = None  # of a resumed session: its own checkpoint
    for path in _OF_ONE_RUN:
        *parents, key = path.split('.')
        node: Any = plain
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(key, None)
    for teacher in ((plain.get('model') or {}).get('teachers') or {}).values():
        teacher.pop('checkpoint', None)
    plain = {key: value for key, value in plain.items() if value not in (None, {})}
    return json.dumps(plain, sort_keys=True, default=str)


def _name(groups: list[Group]) -> None:
    """Name groups after the folder if all runs share its name, else after the config; make the names unique."""
    for group in groups:
        names = {run.folder.resolve().name for run in group.runs}
        group.title = names.pop() if len(names) == 1 else group.runs[0].config_name
    for form in ('{0} ({1.config_name})', '{0}, {1.folder.parent.name}', '{0} #{2}'):
        titles = [group.title for group in groups]
        for number, group in enumerate(groups):
            if titles.count(titles[number]) > 1:
                group.title = form.format(group.title, group.runs[0], number + 1)


def _architecture(model: Any, scope: str | None) -> str:
    """A model's config as text, without settings that do not affect the shapes of its weights."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            kind = resolved(value.get('type'), scope=scope) or value.get('type')
            left = ('type', '_scope_', 'data_preprocessor', 'init_cfg')
            return {'type': kind} | {k: bare(v) for k, v in value.items() if k not in left}
        return [bare(v) for v in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(bare(model), sort_keys=True, default=str)


def _relate(groups: list[Group]) -> None:
    """Set each group's role, and for each distillation the groups to compare it with."""
    for group in groups:
        group.role = 'distilled' if has_teacher(group.cfg) else 'online' if is_online(group.cfg) else 'plain'
    plain = [(group, _architecture(group.cfg.model, _scope(group))) for group in groups if group.role == 'plain']
    for group in groups:
        if group.role == 'distilled':
            # First by the folder of the teacher's checkpoint: the student may have the same architecture.
            folders = {Path(_teacher(run).get('checkpoint') or '').parent.resolve() for run in group.runs}
            found = [g for g, _ in plain if any(run.folder.resolve() in folders for run in g.runs)]
            # The teacher's own config may be unreadable by now.
            with contextlib.suppress(ValueError, KeyError, TypeError, FileNotFoundError, ImportError):
                model, scope = read_model_config(_teacher(group)['model'], 'teacher')
                wanted = _architecture(model, scope or _scope(group))
                found += [g for g, own in plain if own == wanted]
            for teacher in found[:1]:
                group.teacher, teacher.role = teacher, 'teacher'
    for group in groups:
        if group.role in LEARNING:
            wanted = _architecture(student_config(group.cfg).model, _scope(group))
            same = [g for g, own in plain if own == wanted and g.role != 'teacher']
            # Prefer a group trained on the same data.
            same.sort(key=lambda g: _data(g) != _data(group))
            for alone in same[:1]:
                group.alone, alone.role = alone, 'alone'


def _teacher(run: Run | Group) -> Mapping:
    """The teacher of a distillation, of several the first."""
    return next(iter(config_teachers(run.cfg).values()), {})


def _scope(group: Group) -> str | None:
    return group.cfg.get('default_scope')


def _data(group: Group) -> str:
    return fingerprint_of(group.cfg, 'train_dataloader', 'train_cfg')


def fingerprint_of(cfg: Config, *keys: str) -> str:
    return json.dumps([cfg.to_dict().get(key) for key in keys], sort_keys=True, default=str)
