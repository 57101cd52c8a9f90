"""The main job on the embedded data set: a teacher, its student alone, with KD, with OFD, and with LONDON.

    python tools/demo.py [--task segmentation] [--seed 0] [--work-dir work_dirs/demo]
    python tools/demo.py --task detection [--seed 0] [--work-dir work_dirs/demo-det]
    python tools/demo.py [--task detection] --summary [DIR …]

Each training is tools/train.py on a config of configs/demo. What is finished is kept and reused by the next run, what
was interrupted is resumed. The end is one table, one picture, and a report of all seeds as one HTML page.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path

import rich.progress
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TITLES = {'teacher': 'teacher', 'alone': 'student alone', 'kd': 'KD', 'ofd': 'OFD', 'lckd': 'LONDON'}
DATA = 'data/digit_scenes'


@dataclass(frozen=True)
class Task:
    """One of the two demos."""

    title: str
    host: str
    metric: str  # as the host's evaluator calls it
    column: str
    work_dir: str
    stages: tuple[str, ...]
    teacher: str
    student: str

    @property
    def configs(self) -> dict[str, str]:
        scenes = '1xb8-digit-scenes-96x96.py'
        names = {'teacher': f'{self.teacher}_{scenes}', 'alone': f'{self.student}_{scenes}'}
        names |= {name: f'{name}_{self.teacher}_{self.student}_{scenes}' for name in TITLES if name not in names}
        return {name: f'configs/demo/{file}' for name, file in names.items()}


TASKS = {
    'segmentation': Task(
        'FCN', 'mmseg', 'mIoU', 'mIoU', 'work_dirs/demo', ('stage1', 'stage2', 'stage3', 'stage4'),
        'fcn_r18-w32', 'fcn_r18-w8',
    ),
    'detection': Task(
        'RetinaNet', 'mmdet', 'pascal_voc/mAP', 'mAP', 'work_dirs/demo-det', ('stage1', 'stage2', 'stage3'),
        'retinanet_r18-w32', 'retinanet_r18-w8',
    ),
}  # fmt: skip


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--task', choices=TASKS, default='segmentation')
    p.add_argument('--seed', type=int, default=0, help='of the initial weights and the order of the images')
    p.add_argument('--work-dir', type=Path, help='by default ' + ', '.join(task.work_dir for task in TASKS.values()))
    p.add_argument('--only', nargs='+', choices=TITLES, default=list(TITLES), help='train only these')
    p.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='handed to every training')
    text = 'only print means and deviations of the seeds run in these folders, one a machine (default: the work_dir)'
    p.add_argument('--summary', nargs='*', type=Path, metavar='DIR', help=text)
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    args = p.parse_args(argv)
    warnings.simplefilter('ignore')  # of the hosts' imports
    # The trainings start from the repository's root; a path is the caller's.
    args.work_dir = args.work_dir and args.work_dir.absolute()
    folders = [folder.absolute() for folder in args.summary or []]
    os.chdir(ROOT)
    task = TASKS[args.task]
    args.work_dir = args.work_dir or Path(task.work_dir)
    from lckd_mm.cli import option_path

    option_path(args.work_dir, '--work-dir')
    if args.summary is not None:
        print(summary(task, folders or [args.work_dir]))
        return
    start = time.time()
    call('tools/prepare_data.py', 'digit-scenes', '--out', DATA)
    folder = args.work_dir / f'seed{args.seed}'
    finished = {name: train(task, name, folder, args) for name in TITLES if name in args.only}
    if set(finished) != set(TITLES):
        return
    print('evaluating on the validation scenes …', flush=True)
    rows = evaluate(task, finished)
    import torch

    where = dict(torch=torch.__version__, instructions=torch.backends.cpu.get_cpu_capability(), date=str(date.today()))
    (folder / 'results.json').write_text(json.dumps(dict(where, rows=rows), indent=1) + '\n')
    picture = draw(task, finished, folder)
    print('writing the report …', flush=True)
    from lckd_mm.reporting import write_report

    report = args.work_dir / 'report.html'
    write_report([args.work_dir], report)
    print_table(task, rows, args.seed)
    print(f'{(time.time() - start) / 60:.1f} minutes; figures in {folder / "results.json"}')
    print(f'picture: {picture}')
    print(f'report: {report}')


def call(script: str, *arguments: str, log: Path | None = None, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Run one of the project's tools; its output goes to a log, whose end is shown if the tool fails.

    ``meanwhile`` is called twice a second while it runs, and at its end.
    """
    command = [sys.executable, '-W', 'ignore', script, *arguments]
    with open(log, 'a') if log else contextlib.nullcontext() as file:
        process = subprocess.Popen(command, stdout=file, stderr=log and subprocess.STDOUT)
        try:
            while process.poll() is None:
                meanwhile()
                time.sleep(0.5)
        finally:
            # After Ctrl-C, which a terminal sends to both, it has a last line to write.
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
    meanwhile()
    if process.returncode < 0 or process.returncode == 130:
        raise KeyboardInterrupt
    if process.returncode:
        tail = '' if log is None else f' (the whole log: {log})\n' + '\n'.join(log.read_text().splitlines()[-5:])
        raise RuntimeError(f'{script} failed with status {process.returncode}{tail}')


class Progress:
    """How far a training is, by what its log gets from now on: iteration, of how many, last loss and score."""

    def __init__(self, log: Path, metric: str, column: str):
        self._log, self._read, self._rest = log, log.stat().st_size if log.exists() else 0, b''
        self._step = re.compile(r'Iter\(train\) +\[ *(\d+)/(\d+)\].*? loss: (\S+)')
        self._score = re.compile(rf'Iter\(val\) .*? {re.escape(metric)}: (\S+)')
        self.column, self.done, self.total, self.loss, self.score = column, 0, None, '', ''

    def read(self) -> None:
        """Take in what has been written since."""
        with open(self._log, 'rb') as file:
            file.seek(self._read)
            *lines, self._rest = (self._rest + file.read()).split(b'\n')
            self._read = file.tell()
        for line in (line.decode(errors='replace') for line in lines):
            if found := self._step.search(line):
                self.done, self.total, self.loss = int(found[1]), int(found[2]), f'loss {found[3]}'
            elif found := self._score.search(line):
                self.score = f'{self.column} {float(found[1]):.4g}'

    def __str__(self) -> str:
        return ', '.join(filter(None, [self.loss, self.score]))


def bar(console: Console) -> rich.progress.Progress:
    """One line on a terminal: title, bar, iterations, last loss and score, time left or, at the end, taken."""
    rp = rich.progress
    columns = [
        rp.TextColumn('{task.description:<13}'), rp.BarColumn(24), rp.MofNCompleteColumn(),
        rp.TextColumn('{task.fields[said]}'), rp.TimeRemainingColumn(elapsed_when_finished=True),
    ]  # fmt: skip
    return rp.Progress(*columns, console=console, speed_estimate_period=180)


def train(task: Task, name: str, folder: Path, args: argparse.Namespace) -> Path:
    """The final checkpoint of one training, made if it is not there already; returns its path."""
    from mmengine.config import Config

    from lckd_mm.cli import option_path
    from lckd_mm.storage.files import last_checkpoint

    work_dir = folder / name
    options = [f'randomness.seed={args.seed}', *args.cfg_options]
    distilled = name not in ('teacher', 'alone')
    if distilled:
        teacher = last_checkpoint(folder / 'teacher')
        if teacher is None:
            raise FileNotFoundError(f'{folder / "teacher"}: no teacher was trained there; name it after --only, too')
        options.append(f'model.teacher.checkpoint={option_path(teacher, "--work-dir")}')
    text = Config.fromfile(task.configs[name]).pretty_text + '\n'.join(options)
    if distilled:
        text += (folder / 'teacher' / 'done.json').read_text()
    recipe = dict(recipe=hashlib.sha256(text.encode()).hexdigest())
    done, begun = work_dir / 'done.json', work_dir / 'begun.json'
    if done.exists() and json.loads(done.read_text()) == recipe and last_checkpoint(work_dir):
        print(f'{TITLES[name]}: finished before, kept ({work_dir})')
        return last_checkpoint(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    # Resumed only where the interrupted run had the same recipe.
    resume = begun.exists() and json.loads(begun.read_text()) == recipe and (work_dir / 'last_checkpoint').exists()
    if not resume:
        # What another recipe has left must neither be resumed nor drawn.
        for old in [work_dir / 'last_checkpoint', *work_dir.glob('*/vis_data/scalars.json')]:
            old.unlink(missing_ok=True)
    begun.write_text(json.dumps(recipe))
    log, since, console = work_dir / 'train.log', time.time(), Console()
    arguments = [task.configs[name], '--work-dir', str(work_dir), *(['--resume'] if resume else [])]
    progress = Progress(log, task.metric, task.column)
    if console.is_terminal:
        with bar(console) as shown:
            line = shown.add_task(TITLES[name], total=None, said='resuming' if resume else 'starting')

            def meanwhile() -> None:
                progress.read()
                if progress.total:
                    shown.update(line, completed=progress.done, total=progress.total, said=str(progress))

            call('tools/train.py', *arguments, '--cfg-options', *options, log=log, meanwhile=meanwhile)
    else:
        print(f'{TITLES[name]}: {"resuming" if resume else "training"} … (log: {log})', flush=True)
        call('tools/train.py', *arguments, '--cfg-options', *options, log=log, meanwhile=progress.read)
        print(f'{TITLES[name]}: done in {time.time() - since:.0f} s, {progress}', flush=True)
    done.write_text(json.dumps(recipe))
    return last_checkpoint(work_dir)


def load(task: Task, name: str, checkpoint: Path):
    """The plain host model of a run, loaded strictly: what a user of the host would have."""
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm

    from lckd_mm.hosts import build_model
    from lckd_mm.storage.checkpoint import load_strictly

    importlib.import_module(f'{task.host}.models')  # registers them
    cfg = Config.fromfile(task.configs['teacher' if name == 'teacher' else 'alone'])
    model = revert_sync_batchnorm(build_model(cfg.model, task.host)).eval()
    load_strictly(model, str(checkpoint), name)
    return model, cfg


def evaluate(task: Task, finished: dict[str, Path]) -> dict[str, dict]:
    """The host's own metric in percent on the validation scenes, parameters, and how far the matched σ are apart."""
    import torch
    from mmengine.evaluator import Evaluator
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    importlib.import_module(f'{task.host}.datasets')
    init_default_scope(task.host)
    MMLogger.get_instance('demo', log_level='ERROR')  # the metric would print a table of classes for each net
    rows = {}
    for name, checkpoint in finished.items():
        model, cfg = load(task, name, checkpoint)
        loader = Runner.build_dataloader(cfg.val_dataloader)
        evaluator = Evaluator(cfg.val_evaluator)
        evaluator.dataset_meta = loader.dataset.metainfo
        with torch.no_grad():
            for batch in loader:
                evaluator.process(model(**model.data_preprocessor(batch, False), mode='predict'), batch)
        value = float(evaluator.evaluate(len(loader.dataset))[task.metric])
        rows[name] = {
            task.column: value if task.column == 'mIoU' else 100 * value,
            'parameters': sum(p.numel() for p in model.parameters()),
        }
        sigmas = sigma_history(task, checkpoint.parent)
        if sigmas:
            late = sigmas[-1][0] - 100
            gaps = [abs(math.log(connected / teacher)) for step, connected, teacher in sigmas if step > late]
            rows[name]['sigma_gap'] = statistics.mean(gaps)
    return rows


def sigma_history(task: Task, work_dir: Path, pair: str | None = None) -> list[tuple[int, float, float]]:
    """Step, σ of the student's connected stages and σ of the teacher's, of one pair or in a row of all of them; empty
    for a student without connectors."""
    from lckd_mm.reporting import read_history

    pairs = [pair] if pair else [f'{a}-{b}' for a, b in pairwise(task.stages)]
    return [
        (entry['step'], entry[f'sigma_connected/{pair}'], entry[f'sigma_teacher/{pair}'])
        for entry in read_history(work_dir).training
        for pair in pairs
        if f'sigma_connected/{pair}' in entry
    ]


def print_table(task: Task, rows: dict[str, dict], seed: int) -> None:
    from rich.table import Table

    table = Table(title=f'{task.title} on digit scenes, validation, seed {seed}')
    for column in ('', task.column, 'parameters', 'σ gap to the teacher'):
        table.add_column(column, justify='left' if not column else 'right')
    for name, row in rows.items():
        gap = f'{row["sigma_gap"]:.3f}' if 'sigma_gap' in row else ''
        table.add_row(TITLES[name], f'{row[task.column]:.2f}', f'{row["parameters"]:,}', gap)
    Console().print(table)
    print('σ gap: |ln σ(student) - ln σ(teacher)| of the connected stages at the end of training.')


def summary(task: Task, folders: list[Path]) -> str:
    """A Markdown table over the seeds in each folder, one folder a machine.

    ± is the sample standard deviation over seeds of the means over machines; *machines* is that of one seed over
    machines, pooled over seeds. Gains are paired by seed and machine; from five seeds on they have a bootstrap interval
    over seeds.
    """
    from lckd_mm.reporting import Gain, between, spread, table

    runs: dict[str, list[dict]] = {}
    for folder in folders:
        for path in sorted(folder.glob('seed*/results.json')):
            runs.setdefault(path.parent.name, []).append(results(task, path))
    if len(runs) < 2:
        raise FileNotFoundError(f'{folders[0]}: a deviation needs the results of two seeds, found {len(runs)}')
    machines = max(map(len, runs.values()))
    head = [f'{len(runs)} seeds', task.column, *(['machines'] if machines > 1 else [])]
    head += ['gain over alone', '95 % interval', 'gain over KD', '95 % interval', 'σ gap to the teacher']
    scores = {name: {s: [of[name][task.column] for of in several] for s, several in runs.items()} for name in TITLES}
    rows = []
    for name, title in TITLES.items():
        cells = [title, spread([statistics.mean(values) for values in scores[name].values()])]
        if machines > 1:
            variances = [statistics.variance(values) for values in scores[name].values() if len(values) > 1]
            cells.append(f'{math.sqrt(statistics.mean(variances)):.2f}')
        for base in ('alone', 'kd'):
            if name in ('teacher', 'alone', base):
                cells += ['', '']
                continue
            gains = [[a - b for a, b in zip(scores[name][seed], scores[base][seed])] for seed in runs]
            every = Gain([gain for several in gains for gain in several])
            interval = Gain([statistics.mean(several) for several in gains]).interval()
            cells += [f'{every.mean:+.2f} ({every.wins})', between(interval)]
        gaps = [of[name]['sigma_gap'] for several in runs.values() for of in several if 'sigma_gap' in of[name]]
        rows.append([*cells, spread(gaps)])
    return table(head, rows)


def results(task: Task, path: Path) -> dict[str, dict]:
    """The rows of a results.json."""
    rows = json.loads(path.read_text()).get('rows', {})
    for name in TITLES:
        if task.column not in rows.get(name, {}):
            chosen = next(key for key, value in TASKS.items() if value is task)
            raise ValueError(
                f'{path}: no {task.column} of {name!r} (an older version, or another task); run tools/demo.py '
                f'--task {chosen} --seed {path.parent.name.removeprefix("seed")} --work-dir {path.parents[1]} again'
            )
    return rows


def draw(task: Task, finished: dict[str, Path], folder: Path, count: int = 5) -> Path:
    """Input, truth and each net's prediction for the first validation scenes; below, σ of the connected stages."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    import torch
    from matplotlib.patches import Patch
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS

    from lckd_mm.evaluation.drawing import draw as show
    from lckd_mm.evaluation.drawing import legend

    models = {name: load(task, name, checkpoint) for name, checkpoint in finished.items()}
    host, cfg = models['alone']
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    columns = ['input', 'truth', *(TITLES[name] for name in finished)]
    plt.rcParams['font.size'] = 14
    figure = plt.figure(figsize=(2.3 * len(columns), 2.3 * count + 5.2), layout='constrained')
    top, bottom = figure.subfigures(2, 1, height_ratios=[2.3 * count + 1.2, 4])
    axes, drawn = top.subplots(count, len(columns)), []
    for index, row in enumerate(axes):
        batch = pseudo_collate([dataset[index]])
        image = batch['inputs'][0].permute(1, 2, 0).numpy()[..., ::-1].copy()
        samples = [(batch['data_samples'][0], True)]
        for model, _ in models.values():
            with torch.no_grad():
                predicted = model.test_step(pseudo_collate([dataset[index]]))  # written into what is handed in
            samples.append((predicted[0], False))
        drawn += samples
        panels = [image, *(show(host, image, sample, dataset.metainfo, truth) for sample, truth in samples)]
        for axis, panel, title in zip(row, panels, columns, strict=True):
            axis.imshow(panel, interpolation='nearest')
            axis.set_axis_off()
            if index == 0:
                axis.set_title(title)
    names = legend(host, drawn, dataset.metainfo)
    if names:
        patches = [Patch(color=[c / 255 for c in colour], label=name) for name, colour in names.items()]
        top.legend(handles=patches, loc='outside lower center', ncols=len(patches), handlelength=1, columnspacing=1)
    pairs = [f'{a}-{b}' for a, b in pairwise(task.stages)]
    plots = bottom.subplots(1, len(pairs))
    for axis, pair in zip(plots, pairs, strict=True):
        for name, colour in (('ofd', 'tab:orange'), ('lckd', 'tab:blue')):
            steps, sigma, teacher = zip(*sigma_history(task, folder / name, pair), strict=True)
            axis.plot(steps, sigma, color=colour, linewidth=2, label=TITLES[name])
        axis.plot(steps, teacher, color='black', linestyle='--', linewidth=1, label='teacher')
        axis.set_yscale('log')
        axis.yaxis.set_major_formatter('{x:g}')
        axis.yaxis.set_minor_formatter('{x:g}')
        axis.set_title(f'σ of {pair.replace("-", " → ")}')
        axis.set_xlabel('iteration')
        axis.tick_params(which='both', labelsize=12)
    plots[0].legend()
    path = folder / 'demo.png'
    figure.savefig(path, dpi=125)
    plt.close(figure)
    return path


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit('interrupted; run it again to go on')
    except Exception as error:
        if '--debug' in sys.argv:
            raise
        sys.exit(f'error: {error}')
