"""Run a study: a grid of configs and seeds, with tables and pictures of the results.

    python tools/bench/study.py STUDY.py [--seeds 5] [--runs NAME …] [--jobs 2]
    python tools/bench/study.py STUDY.py --launcher slurm --partition PARTITION [--sbatch-args=--gres=gpu:1 …]
    python tools/bench/study.py STUDY.py --report
    python tools/bench/study.py STUDY.py --test
    python tools/bench/study.py STUDY.py --test --record STUDY-test.json

A study is a Python file with these names (see tools/bench/studies):

    title, metric       metric=dict(key='mIoU', title='mIoU', scale=1, higher=True): key of the last logged validation
    work_dir            default --work-dir; each run is in its folder seedN/NAME
    runs                name -> dict(config=…, title=…), optionally with
      options             dict of further --cfg-options; a dict in it stands for its items: {'model.terms': dict(…)}
      needs               dict: option -> run of the same seed; the option is set to that run's last checkpoint
      axes                axes over which this run is repeated
      against             run to compare with, at the same levels of their common axes
      seed                train it once, with this seed, for all seeds (such as a shared teacher)
    axes                axis -> level -> dict of --cfg-options
    skip                list of dict(run=…, AXIS=level …): combinations to leave out
    prepare             list of commands (lists of words after python) to run first
    picture             'dots' (the default), or dict(x=AXIS): one curve per run over the levels of an axis
    base                run with which overhead.py compares the others' costs; 'alone' by default

Finished runs are not repeated, and interrupted ones are resumed. A run whose config, options or needed runs have
changed starts again from scratch. Every run is tools/train.py in its own process, with one thread.

Differences are paired by seed. Their 95 % interval is the percentile bootstrap over seeds, with 9,999 resamples and a
fixed random seed; fewer than five seeds have none. With few seeds it is too narrow: if all of five seeds agree in sign,
it never contains 0, and by chance that happens one time in 16. So the number of seeds that agree is reported as well.

Scores are those of the last validation. With --test each run's last checkpoint is tested once with its config's
test_dataloader, and STUDY-test.md and its picture have those scores, and the p values of paired t tests with Holm's
correction for the number of rows. --record prints the table of a record that such a report has stored.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache
from itertools import count, cycle, product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmengine.config import Config  # noqa: E402

from lckd_mm.cli import option_path, run_tool  # noqa: E402
from lckd_mm.reporting import Gain, between, holm, probability, read_history, spread, table  # noqa: E402
from lckd_mm.reporting.charts import COLOURS, curve, dots, save  # noqa: E402
from lckd_mm.storage.files import last_checkpoint  # noqa: E402

RUN_KEYS = ('config', 'title', 'options', 'needs', 'axes', 'against', 'seed')
STUDY_KEYS = ('title', 'metric', 'work_dir', 'runs', 'axes', 'skip', 'prepare', 'picture', 'base')


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: a run of the study at certain levels of its axes."""

    run: str
    levels: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        # --cfg-options would read a path with commas as a list.
        return '-'.join([self.run, *(re.sub(r'[^\w.%]+', '-', level) for level in self.levels.values())])


class Study:
    """A validated study file, with its cells ordered so that each comes after those it needs."""

    def __init__(
        self, path: str | Path, work_dir: Path | None = None, cfg_options: Iterable[str] = (), tests: bool = False
    ):
        where = f'study {str(path)!r}'
        if not Path(path).is_file():
            raise FileNotFoundError(f'{where}: no such file')
        cfg = {key: value for key, value in Config.fromfile(str(path)).to_dict().items() if not key.startswith('_')}
        check_keys(cfg, STUDY_KEYS, ('title', 'metric', 'work_dir', 'runs'), where)
        self.path, self.cfg_options = Path(path), list(cfg_options)
        #: Whether the reported scores are those of the test split.
        self.tests = tests
        #: Their key in a run's results.
        self.main = 'test' if tests else 'score'
        self.title, self.axes, self.skip = cfg['title'], cfg.get('axes', {}), cfg.get('skip', [])
        self.metric = {'scale': 1, 'higher': True, **cfg['metric']}
        self.metric['title'] += ', test' * tests
        self.work_dir = Path(work_dir or cfg['work_dir'])
        self.runs, self.commands, self.picture = cfg['runs'], cfg.get('prepare', []), cfg.get('picture', 'dots')
        #: The run that overhead.py compares costs with.
        self.base = cfg.get('base', 'alone')
        for name, run in self.runs.items():
            self._check(name, run)
        if self.picture != 'dots' and self.picture.get('x') not in self.axes:
            raise ValueError(f'{where}: picture: x must be one of the axes {", ".join(self.axes)}')
        self.cells = self._cells()
        self._recipes: dict[tuple[str, int], str] = {}

    def _check(self, name: str, run: dict) -> None:
        where = f'study {str(self.path)!r}, run {name!r}'
        check_keys(run, RUN_KEYS, ('config', 'title'), where)
        if not (ROOT / run['config']).is_file():
            raise FileNotFoundError(f'{where}: config {run["config"]!r}: no such file')
        for other in [*run.get('needs', {}).values(), *filter(None, [run.get('against')])]:
            if other not in self.runs:
                raise ValueError(f'{where}: there is no run {other!r}')
        if 'seed' in self.runs.get(run.get('against'), {}):
            raise ValueError(f'{where}: against={run["against"]!r} has a fixed seed, so gains cannot be paired by seed')
        for axis in run.get('axes', []):
            if axis not in self.axes:
                raise ValueError(f'{where}: there is no axis {axis!r}')
        for other in run.get('needs', {}).values():
            if 'seed' in run and 'seed' not in self.runs[other]:
                raise ValueError(f'{where}: it has a fixed seed and needs {other!r}, which has none')
            missing = set(self.runs[other].get('axes', [])) - set(run.get('axes', []))
            if missing:
                raise ValueError(f'{where}: it needs {other!r}, and must have its axis {sorted(missing)[0]!r}')

    def _cells(self) -> list[Cell]:
        cells, pending = [], dict(self.runs)
        while pending:
            ready = [n for n, r in pending.items() if not any(o in pending for o in r.get('needs', {}).values())]
            if not ready:
                raise ValueError(f'study {str(self.path)!r}: the runs {", ".join(pending)} need one another')
            for name in ready:
                axes = pending.pop(name).get('axes', [])
                cells += [Cell(name, dict(zip(axes, levels))) for levels in product(*(self.axes[a] for a in axes))]
        left = [c for c in cells if not any({'run': c.run, **c.levels}.items() >= rule.items() for rule in self.skip)]
        names = [cell.name for cell in left]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f'study {str(self.path)!r}: two runs would share the folder {twice[0]!r}; rename a level')
        return left

    def at(self, run: str, cell: Cell) -> Cell:
        """Another run, at a cell's levels of the run's axes."""
        return Cell(run, {a: cell.levels[a] for a in self.runs[run].get('axes', []) if a in cell.levels})

    def needs(self, cell: Cell) -> dict[str, Cell]:
        return {option: self.at(run, cell) for option, run in self.runs[cell.run].get('needs', {}).items()}

    def against(self, cell: Cell) -> Cell | None:
        run = self.runs[cell.run].get('against')
        return self.at(run, cell) if run else None

    def chosen(self, names: Iterable[str] | None) -> list[Cell]:
        """The cells of these runs, and those they need or are compared with."""
        if names is None:
            return self.cells
        for name in names:
            if name not in self.runs:
                raise ValueError(f'study {str(self.path)!r}: there is no run {name!r}; it has {", ".join(self.runs)}')
        wanted = {c.name for c in self.cells if c.run in names}
        for cell in reversed(self.cells):
            if cell.name in wanted:
                others = [*self.needs(cell).values(), self.against(cell)]
                wanted |= {o.name for o in others if o is not None}
        return [c for c in self.cells if c.name in wanted]

    def folder(self, cell: Cell, seed: int) -> Path:
        return self.work_dir / f'seed{self.seed_of(cell, seed)}' / cell.name

    def out(self, suffix: str) -> Path:
        """Path of a table or picture; named after the study, since studies may share a work_dir and its runs."""
        return self.work_dir / f'{self.path.stem}{"-test" * self.tests}.{suffix}'

    def seed_of(self, cell: Cell, seed: int) -> int:
        return self.runs[cell.run].get('seed', seed)

    def grid(self, cells: Iterable[Cell], seeds: Iterable[int]) -> list[tuple[Cell, int]]:
        """Every (cell, seed), seed by seed, each after those it needs; cells with a fixed seed only once."""
        return list(dict.fromkeys((c, self.seed_of(c, s)) for s in seeds for c in cells))

    def title_of(self, cell: Cell) -> str:
        return ', '.join([self.runs[cell.run]['title'], *cell.levels.values()])

    def own_options(self, cell: Cell) -> dict:
        """The options that the study sets for the cell."""
        own = dict(self.runs[cell.run].get('options', {}))
        for axis, level in cell.levels.items():
            own |= self.axes[axis][level]
        return flat(own)

    def options(self, cell: Cell) -> list[str]:
        """``--cfg-options`` without the seed and the checkpoints: the study's first, then those of the command line."""
        plain = not self.needs(cell)
        handed = [o for o in self.cfg_options if not (plain and o.startswith(('model.', 'default_hooks.')))]
        return [f'{key}={value}' for key, value in self.own_options(cell).items()] + handed

    def recipe(self, cell: Cell, seed: int) -> str:
        """A hash of everything that determines a run: its config with its bases, options, and the runs it needs."""
        seed = self.seed_of(cell, seed)
        if (cell.name, seed) not in self._recipes:
            text = read(self.runs[cell.run]['config'])[0] + json.dumps(self.options(cell))
            text += ''.join(option + self.recipe(need, seed) for option, need in self.needs(cell).items())
            self._recipes[cell.name, seed] = hashlib.sha256(text.encode()).hexdigest()
        return self._recipes[cell.name, seed]

    def prepare(self) -> None:
        for command in self.commands:
            subprocess.run([sys.executable, '-W', 'ignore', *command], check=True, stdout=subprocess.DEVNULL)

    def finished(self, cell: Cell, seed: int) -> bool:
        return _read(self.folder(cell, seed) / 'recipe') == self.recipe(cell, seed)

    def complete(self, cell: Cell, seed: int) -> bool:
        """Finished, and tested if tests are asked for."""
        return self.finished(cell, seed) and (not self.tests or (self.folder(cell, seed) / 'test.json').exists())

    def run(self, cell: Cell, seed: int) -> None:
        """Do what a run lacks."""
        if not self.finished(cell, seed):
            self.train(cell, seed)
        if not self.complete(cell, seed):
            self.test(cell, seed)

    def test(self, cell: Cell, seed: int) -> None:
        """Test a finished run's last checkpoint; its metrics are in test.json of its folder."""
        folder, config = self.folder(cell, seed), self.runs[cell.run]['config']
        checkpoint = last_checkpoint(folder)
        if checkpoint is None:
            raise RuntimeError(f'{cell.name}, seed {seed}: its checkpoint is gone; remove its folder')
        command = ['tools/test.py', config, str(checkpoint), '--work-dir', str(folder)]
        command += ['--out', str(folder / 'test.json')]
        command += ['--cfg-options', *options] if (options := self.options(cell)) else []
        call(command, folder / 'test.log', f'{cell.name}, seed {seed}, test')
        self.result(cell, seed)  # raises without the metric

    def train(self, cell: Cell, seed: int) -> None:
        """Train or resume one run; if it fails, RuntimeError names its log."""
        folder, recipe = self.folder(cell, seed), self.recipe(cell, seed)
        options = [f'randomness.seed={seed}', *self.options(cell)]
        for option, need in self.needs(cell).items():
            if not self.finished(need, seed):
                raise RuntimeError(f'{cell.name}, seed {seed}: {need.name} is not finished')
            checkpoint = last_checkpoint(self.folder(need, seed))
            if checkpoint is None:
                raise RuntimeError(
                    f'{cell.name}, seed {seed}: the checkpoint of {need.name} is gone; remove its folder'
                )
            options.append(f'{option}={option_path(checkpoint, "--work-dir")}')
        folder.mkdir(parents=True, exist_ok=True)
        for old in ('recipe', 'test.json'):
            (folder / old).unlink(missing_ok=True)
        # Resume only if the interrupted run had the same recipe.
        resume = _read(folder / 'begun') == recipe and (folder / 'last_checkpoint').exists()
        if not resume:
            for old in [folder / 'last_checkpoint', *folder.glob('*/vis_data/scalars.json')]:
                old.unlink(missing_ok=True)
        (folder / 'begun').write_text(recipe)
        command = ['tools/train.py', self.runs[cell.run]['config'], '--work-dir', str(folder)]
        command += ['--resume'] * resume + ['--cfg-options', *options]
        call(command, folder / 'train.log', f'{cell.name}, seed {seed}', append=resume)
        self.result(cell, seed)  # raises without a validation: then the run is not finished
        (folder / 'recipe').write_text(recipe)

    def result(self, cell: Cell, seed: int) -> dict[str, float]:
        """``score`` of the last validation; ``also NET`` if several nets are validated; ``share TERM``, the mean
        fraction of each term in the loss; ``test`` and ``test METRIC``, if the run was tested."""
        key, scale = self.metric['key'], self.metric['scale']
        history = read_history(self.folder(cell, seed))
        validated = [e for e in history.validation if key in e]
        if not validated:
            raise RuntimeError(f'{cell.name}, seed {seed}: its log has no {key!r}, the metric of {str(self.path)!r}')
        nets = {k.removesuffix(key).rstrip('/'): scale * v for k, v in validated[-1].items() if k.endswith(f'/{key}')}
        training = [e for e in history.training if e['loss'] > 0]
        file = self.folder(cell, seed) / 'test.json'
        tested = json.loads(_read(file) or '{}')
        if file.exists() and self.tests and key not in tested:
            raise RuntimeError(f'{cell.name}, seed {seed}: {file} has no {key!r}, the metric of {str(self.path)!r}')
        found = dict(score=scale * validated[-1][key]) | {f'also {net}': score for net, score in nets.items()}
        found |= {f'test {k}': v for k, v in tested.items() if k != key}
        found |= {'test': scale * tested[key]} if key in tested else {}
        for term in sorted(self.terms(cell) & {k.rpartition('.')[2] for e in training for k in e}):
            # In online distillation, net0.loss_kd and net1.loss_kd are counted together.
            parts = [sum(v for k, v in e.items() if k.rpartition('.')[2] == term) / e['loss'] for e in training]
            found[f'share {term.removeprefix("loss_")}'] = statistics.mean(parts)
        return found

    def terms(self, cell: Cell) -> set[str]:
        """The names of the cell's terms, from its config and its options."""
        named = (o.split('.')[2] for o in self.options(cell) if o.startswith('model.terms.'))
        return {*read(self.runs[cell.run]['config'])[1], *named}


def flat(options: Mapping, prefix: str = '') -> dict:
    """Nested options with dotted keys, as --cfg-options takes them."""
    found = {}
    for key, value in options.items():
        found |= flat(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {f'{prefix}{key}': value}
    return found


def check_keys(given: Mapping, known: Sequence[str], required: Sequence[str], where: str) -> None:
    for key in required:
        if key not in given:
            raise ValueError(f'{where}: it has no {key}')
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f'{where}: unknown name {unknown[0]!r}, expected {", ".join(known)}')


@cache
def read(config: str) -> tuple[str, tuple[str, ...], bool]:
    """A config of this project as text, with its bases; its terms; whether its test data are its validation data."""
    cfg = Config.fromfile(ROOT / config)
    same = cfg.get('test_dataloader') == cfg.get('val_dataloader')
    return cfg.pretty_text, tuple(cfg.get('model', {}).get('terms') or ()), same


#: The results of cells by seed.
Found = dict[Cell, dict[int, dict]]


def call(command: list[str], log: Path, who: str, append: bool = False) -> None:
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}
    with open(log, 'a' if append else 'w') as file:
        command = [sys.executable, '-W', 'ignore', *command]
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=ROOT)
    if done.returncode:
        ends = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
        raise RuntimeError(f'{who}: {ends[-1] if ends else f"status {done.returncode}"} (the whole log: {log})')


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ''


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('study')
    p.add_argument('--seeds', type=int, default=5, help='seeds 0 to this, exclusive')
    p.add_argument('--first-seed', type=int, default=0)
    p.add_argument('--runs', nargs='+', metavar='NAME', help='only these, what they need and are compared with')
    p.add_argument('--jobs', type=int, default=os.cpu_count() or 1, help='runs at a time')
    p.add_argument('--work-dir', type=Path)
    handed = "handed to every run; those of model. and default_hooks. only to runs that need another's checkpoint"
    p.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=handed)
    p.add_argument('--report', action='store_true', help='train nothing: tables and picture of what is finished')
    p.add_argument('--test', action='store_true', help="test each run's last checkpoint, and report these scores")
    p.add_argument('--record', type=Path, metavar='FILE', help='train nothing: the table of a stored STUDY.json')
    p.add_argument('--launcher', choices=('local', 'slurm'), default='local')
    p.add_argument('--partition', help="Slurm's")
    p.add_argument('--sbatch-args', default='', help='more arguments of sbatch, in one word')
    p.add_argument('--only', metavar='seedN/NAME', help='this one run and no report, as a task of a Slurm array')
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    args = p.parse_args(argv)
    if args.seeds < 1 or args.jobs < 1:
        raise ValueError('--seeds and --jobs must be 1 or more')
    warnings.simplefilter('ignore')  # from the hosts' imports
    # Runs start in the repository's root; paths on the command line are relative to the caller's folder.
    args.study, args.work_dir = Path(args.study).absolute(), args.work_dir and args.work_dir.absolute()
    args.record = args.record and args.record.absolute()
    os.chdir(ROOT)
    study = Study(args.study, args.work_dir, args.cfg_options, args.test)
    if args.record:
        found = stored(study, args.record)
        print(markdown(study, rows_of(study, found), max(map(len, found.values()))))
        return
    cells, seeds = study.chosen(args.runs), list(range(args.first_seed, args.first_seed + args.seeds))
    if any(study.needs(cell) for cell in cells):
        option_path(study.work_dir, '--work-dir')  # check before hours of training, not after
    if args.only:
        run_one(study, args.only)
    elif args.launcher == 'slurm' and not args.report:
        submit(study, cells, seeds, args)
    else:
        failed = [] if args.report else run_all(study, cells, seeds, args.jobs)
        report(study, cells, seeds)
        if failed:
            total = len(study.grid(cells, seeds))
            raise RuntimeError(f'{len(failed)} of {total} runs failed: {"; ".join(failed)}')


def run_one(study: Study, name: str) -> None:
    seed, _, cell = name.partition('/')
    found = [c for c in study.cells if c.name == cell]
    if not found or not seed.removeprefix('seed').isdigit():
        raise ValueError(f'--only: there is no run {name!r}; it has seed0/{study.cells[0].name} and so on')
    seed = int(seed.removeprefix('seed'))
    study.run(found[0], seed)


def run_all(study: Study, cells: list[Cell], seeds: list[int], jobs: int) -> list[str]:
    """Run everything that is not finished; returns the errors of failed runs."""
    # This reads every config before threads start: the config libraries are not thread-safe.
    todo = [(c, s) for c, s in study.grid(cells, seeds) if not study.complete(c, s)]
    if not todo:
        return []
    study.prepare()
    number, lock = count(1), threading.Lock()
    futures: dict[tuple[str, int], Future] = {}

    def work(cell: Cell, seed: int, before: list[Future]) -> None:
        for future in before:
            if future.exception():
                raise RuntimeError(f'{cell.name}, seed {seed}: what it needs failed')
        study.run(cell, seed)
        with lock:
            score = study.result(cell, seed)[study.main]
            print(f'[{next(number)}/{len(todo)}] seed {seed}, {study.title_of(cell)}: {score:.2f}', flush=True)

    pool = ThreadPoolExecutor(jobs)
    try:
        for cell, seed in todo:
            # Needed runs were submitted earlier, so no worker waits for a run that cannot start.
            needs = [(need.name, study.seed_of(need, seed)) for need in study.needs(cell).values()]
            futures[cell.name, seed] = pool.submit(work, cell, seed, [futures[k] for k in needs if k in futures])
        wait(futures.values())
    finally:
        # After an interrupt, do not start the remaining runs.
        pool.shutdown(cancel_futures=True)
    return [str(f.exception()) for f in futures.values() if f.exception()]


def submit(study: Study, cells: list[Cell], seeds: list[int], args: argparse.Namespace) -> None:
    """Submit one Slurm array per layer of needs, each after the previous one, and a final job for the report."""
    folder = study.work_dir / 'slurm'
    folder.mkdir(parents=True, exist_ok=True)
    # Two jobs of the same run would write into the same folder.
    record, queued = folder / 'jobs', _slurm('squeue', '--me', '--noheader', '--format=%F').split()
    waiting = [job for job in _read(record).split() if job in queued]
    if waiting:
        raise RuntimeError(
            f'--launcher slurm: jobs {", ".join(waiting)} of a study in {str(study.work_dir)!r} are still queued or '
            f'running; wait for them, or scancel {" ".join(waiting)}'
        )
    record.write_text('')
    study.prepare()
    command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools/bench/study.py'), str(study.path)]
    command += ['--work-dir', str(study.work_dir.absolute())]
    command += ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    command += ['--test'] * study.tests
    common = ['--requeue', '--open-mode=append', *shlex.split(args.sbatch_args)]
    common += [f'--partition={args.partition}'] if args.partition else []
    jobs: list[str] = []

    def batch(name: str, lines: list[str], *options: str) -> str:
        """Submit a script after the previous job, even if that failed: a run checks by itself what it needs."""
        script = folder / f'{name}.sh'
        script.write_text('\n'.join(['#!/usr/bin/env bash', *lines, '']))
        after = [f'--dependency=afterany:{jobs[-1]}'] if jobs else []
        done = _slurm('sbatch', '--parsable', *common, *after, *options, str(script))
        jobs.append(done.strip().partition(';')[0])
        record.write_text('\n'.join(jobs) + '\n')
        return jobs[-1]

    depth: dict[str, int] = {}
    for cell in cells:
        depth[cell.name] = 1 + max((depth[n.name] for n in study.needs(cell).values()), default=-1)
    runs = 0
    for layer in range(max(depth.values()) + 1):
        layered = study.grid([c for c in cells if depth[c.name] == layer], seeds)
        names = [f'seed{s}/{c.name}' for c, s in layered if not study.complete(c, s)]
        if names:
            runs += len(names)
            lines = [
                f'runs=({shlex.join(names)})',
                f'exec {shlex.join(command)} --only "${{runs[$SLURM_ARRAY_TASK_ID]}}"',
            ]
            array = (f'--array=0-{len(names) - 1}%{args.jobs}', f'--output={folder}/layer{layer}-%a.log')
            print(f'layer {layer}: {len(names)} runs, array {batch(f"layer{layer}", lines, *array)}')
    if not jobs:
        report(study, cells, seeds)
        return
    command += ['--report', '--seeds', str(args.seeds), '--first-seed', str(args.first_seed)]
    command += ['--runs', *args.runs] if args.runs else []
    job = batch('report', [f'exec {shlex.join(command)}'], f'--output={folder}/report.log')
    print(f'report: job {job}, into {study.out("md")}; {runs} runs in all')


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError(f'--launcher slurm: there is no {command[0]} here') from None
    if done.returncode:
        raise RuntimeError(f'{command[0]}: {done.stderr.strip()}')
    return done.stdout


def report(study: Study, cells: list[Cell], seeds: list[int]) -> None:
    """Write STUDY.json, STUDY.md and STUDY.png to the work_dir, from the finished runs."""
    # In the order of the study file.
    cells = sorted(cells, key=lambda cell: list(study.runs).index(cell.run))
    found: Found = {}
    for cell in cells:
        for _, seed in study.grid([cell], seeds):
            if study.complete(cell, seed):
                try:
                    found.setdefault(cell, {})[seed] = study.result(cell, seed)
                except RuntimeError as error:
                    print(f'left out: {error}')
    if not found:
        print('nothing is finished yet')
        return
    rows = rows_of(study, found)
    record = {
        c.name: dict(
            title=study.title_of(c),
            levels=c.levels,
            config=study.runs[c.run]['config'],
            options=study.options(c),
            runs=runs,
        )
        for c, runs in found.items()
    }
    study.work_dir.mkdir(parents=True, exist_ok=True)
    study.out('json').write_text(json.dumps(record, indent=1) + '\n')
    text = markdown(study, rows, len(seeds))
    if study.tests and any(read(study.runs[cell.run]['config'])[2] for cell in found):
        text += '\n\nThe test data of these configs are their validation data.'
    study.out('md').write_text(text + '\n')
    print(text)
    picture = draw(study, rows, found, study.out('png'))
    print(f'figures: {study.out("json")}; picture: {picture}')


def stored(study: Study, record: Path) -> Found:
    """The runs of a STUDY.json; ValueError if the study has them no more, or if they lack the scores asked for."""
    cells, found = {cell.name: cell for cell in study.cells}, {}
    for name, row in json.loads(record.read_text()).items():
        if name not in cells or row['title'] != study.title_of(cells[name]):
            raise ValueError(f'{str(record)!r}: {str(study.path)!r} has no run {name!r} ({row["title"]}) any more')
        found[cells[name]] = {int(seed): run for seed, run in row['runs'].items()}
    if not all(study.main in run for runs in found.values() for run in runs.values()):
        raise ValueError(f'{str(record)!r}: not every run in it was tested; leave out --test')
    return found


@dataclass
class Row:
    """One row of the table."""

    title: str
    scores: dict[int, float]
    shares: dict[str, float]
    against: str
    gain: Gain


def rows_of(study: Study, found: Found) -> list[Row]:
    """One row per cell; for online distillation one per net and one for the ensemble."""
    rows, main = [], study.main
    for cell, runs in found.items():
        first = next(iter(runs.values()))
        # A test is of net 0 alone.
        also = [k for k in first if k.startswith('also ') and not study.tests]
        base = study.against(cell)
        theirs = {s: r[main] for s, r in found.get(base, {}).items()}
        shares = {k[6:]: statistics.mean(r[k] for r in runs.values()) for k in first if k.startswith('share ')}
        if any(not 0 <= share <= 1 for share in shares.values()):
            shares = {}  # exploring terms are negative, so fractions are meaningless
        for key in [main, *also]:
            scores = {s: r[key] for s, r in runs.items()}
            net = f': {"net0" if key == main else key.removeprefix("also ")}' if also else ''
            gain = Gain.by_seed(scores, theirs, study.metric['higher'])
            against = study.title_of(base) if gain.values else ''
            rows.append(Row(study.title_of(cell) + net, scores, shares if key == main else {}, against, gain))
    return rows


def markdown(study: Study, rows: list[Row], count: int) -> str:
    others = {row.against for row in rows if row.against}
    one = f' over {next(iter(others))}' if len(others) == 1 else ''
    head = [f'{count} seed{"s" * (count > 1)}', study.metric['title'], f'gain{one}', '95 % interval', 'better in']
    head += ['p (Holm)'] * study.tests
    gained = [row for row in rows if row.gain.values]
    corrected = dict(zip(map(id, gained), holm([row.gain.p_value for row in gained])))
    lines = []
    for row in rows:
        gain, wins, interval = '', '', row.gain.interval()
        if row.gain.values:
            gain, wins = f'{row.gain.mean:+.2f}' + ('' if one else f' over {row.against}'), row.gain.wins
        if interval and (interval[0] > 0 or interval[1] < 0):
            gain = f'**{gain}**'
        short = f' ({len(row.scores)} seed{"s" * (len(row.scores) > 1)})' * (len(row.scores) < count)
        parts = ', '.join(f'{name} {share:.0%}' for name, share in row.shares.items())
        p = [probability(corrected[id(row)]) if id(row) in corrected else ''] * study.tests
        lines.append([row.title + short, spread(list(row.scores.values())), gain, between(interval), wins, *p, parts])
    return table([*head, 'part of the loss'], lines)


def draw(study: Study, rows: list[Row], found: Found, path: Path) -> Path:
    """Dots, or curves if a run is repeated over the axis of the study's picture."""
    if study.picture != 'dots' and any(study.picture['x'] in cell.levels for cell in found):
        return _curves(study, found, path)
    bases = [row for row in rows if row.title in {row.against for row in rows}]
    # Leave out teachers, which would stretch the axis.
    shown = [row for row in rows if row.gain.values or row in bases] or rows

    def plot(figure) -> None:
        axis = figure.subplots()
        dots(axis, {row.title: list(row.scores.values()) for row in shown}, study.metric['title'])
        for row in bases:
            axis.axvline(statistics.mean(row.scores.values()), color='grey', linestyle=':', linewidth=1)

    return save(path, (7.5, 0.3 * len(shown) + 0.9), plot)


def _curves(study: Study, found: Found, path: Path) -> Path:
    """Score and gain (mean ± deviation) over the levels of one axis; one panel per combination of the other axes."""
    x, titles = study.picture['x'], {name: run['title'] for name, run in study.runs.items()}
    levels, colours = list(study.axes[x]), dict(zip(study.runs, cycle(COLOURS)))
    scores = {cell: {seed: run[study.main] for seed, run in runs.items()} for cell, runs in found.items()}
    panels: dict[tuple, dict[str, dict[int, Cell]]] = {}
    for cell in sorted(found, key=lambda cell: levels.index(cell.levels.get(x, levels[0]))):
        if x in cell.levels:
            rest = tuple((a, level) for a, level in cell.levels.items() if a != x)
            panels.setdefault(rest, {}).setdefault(cell.run, {})[levels.index(cell.levels[x])] = cell

    def band(axis, values: dict[int, dict[int, float]], **style) -> None:
        seeds = {seed for of in values.values() for seed in of}
        curve(axis, [{i: of[s] for i, of in values.items() if s in of} for s in seeds], marker='o', **style)

    def plot(figure) -> None:
        axes = figure.subplots(2, len(panels), squeeze=False, sharey='row')
        for (rest, runs), (top, bottom) in zip(panels.items(), axes.T, strict=True):
            top.set_title(', '.join(f'{axis}: {level}' for axis, level in rest))
            for run, cells in runs.items():
                style, base = dict(color=colours[run]), study.runs[run].get('against')
                band(top, {i: scores[cell] for i, cell in cells.items()}, label=titles[run], **style)
                bases = {i: scores.get(study.against(cell), {}) for i, cell in cells.items()}
                gains = {
                    i: {s: v - bases[i][s] for s, v in scores[c].items() if s in bases[i]} for i, c in cells.items()
                }
                if any(gains.values()):
                    band(bottom, gains, label=f'{titles[run]} over {titles[base]}', **style)
            bottom.axhline(0, color='grey', linewidth=1)
            bottom.set_xlabel(x)
            for axis in (top, bottom):
                axis.set_xticks(range(len(levels)), levels)
        for axis, label in zip(axes[:, 0], (study.metric['title'], 'gain')):
            axis.set_ylabel(label)
            if axis.get_legend_handles_labels()[0]:
                axis.legend()

    return save(path, (1 + 4.2 * len(panels), 6), plot)


if __name__ == '__main__':
    sys.exit(run_tool(main))
