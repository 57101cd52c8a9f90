"""The main job on the embedded data set: a teacher, its student alone, with KD, with OFD, and with LONDON.

    python tools/demo.py [--task segmentation] [--seed 0] [--work-dir work_dirs/demo]
    python tools/demo.py --task detection [--seed 0] [--work-dir work_dirs/demo-det]
    python tools/demo.py [--task detection] --summary [DIR …]

Each training is tools/train.py on a config of configs/demo. What is finished is kept and reused by the next run, what
was interrupted is resumed. The end is one table, one picture, and a report of all seeds as one HTML page.
"""

import argparse
import hashlib
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path

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


def call(script: str, *arguments: str, log: Path | None = None) -> None:
    """Run one of the project's tools; its output goes to a log, whose end is shown if the tool fails."""
    command = [sys.executable, '-W', 'ignore', script, *arguments]
    if log is None:
        result = subprocess.run(command)
    else:
        with open(log, 'a') as file:
            result = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if result.returncode < 0 or result.returncode == 130:
        raise KeyboardInterrupt
    if result.returncode:
        tail = '' if log is None else f' (the whole log: {log})\n' + '\n'.join(log.read_text().splitlines()[-5:])
        raise RuntimeError(f'{script} failed with status {result.returncode}{tail}')


def train(task: Task, name: str, folder: Path, args: argparse.Namespace) -> Path:
    """The final checkpoint of one training, made if it is not there already; returns its path."""
    from mmengine.config import Config

    from lckd_mm.cli import option_path
    from lckd_mm.reporting.runs import last_checkpoint

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
    log = work_dir / 'train.log'
    print(f'{TITLES[name]}: {"resuming" if resume else "training"} … (log: {log})', flush=True)
    since = time.time()
    extra = ['--resume'] if resume else []
    call('tools/train.py', task.configs[name], '--work-dir', str(work_dir), *extra, '--cfg-options', *options, log=log)
    done.write_text(json.dumps(recipe))
    print(f'{TITLES[name]}: done in {time.time() - since:.0f} s', flush=True)
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
    from rich.console import Console
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
            interval = Gain([statistics.mean(several) for several in gains]).interval(5)
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


def draw(task: Task, finished: dict[str, Path], folder: Path, count: int = 6) -> Path:
    """Input, truth and each net's prediction for some validation scenes; below, σ of the connected stages over time."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    import numpy as np
    import torch
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS

    from lckd_mm.evaluation.drawing import draw as show

    models = {name: load(task, name, checkpoint) for name, checkpoint in finished.items()}
    cfg = models['alone'][1]
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    columns = ['input', 'truth', *(TITLES[name] for name in finished)]
    figure = plt.figure(figsize=(1.75 * len(columns), 1.75 * count + 3.4), layout='constrained')
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.75 * count, 3.4])
    axes = top.subplots(count, len(columns))
    for row, index in enumerate(np.linspace(0, len(dataset) - 1, count).astype(int)):
        batch = pseudo_collate([dataset[index]])
        image = batch['inputs'][0].permute(1, 2, 0).numpy()[..., ::-1].copy()
        samples = list(batch['data_samples'])
        for model, _ in models.values():
            with torch.no_grad():
                samples += model.test_step(pseudo_collate([dataset[index]]))  # written into what is handed in
        host, meta = models['alone'][0], dataset.metainfo
        panels = [image, *(show(host, image, sample, meta, truth=k == 0) for k, sample in enumerate(samples))]
        for axis, panel, title in zip(axes[row], panels, columns, strict=True):
            axis.imshow(panel, interpolation='nearest')
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=9)
    pairs = [f'{a}-{b}' for a, b in pairwise(task.stages)]
    plots = bottom.subplots(1, len(pairs))
    for axis, pair in zip(plots, pairs, strict=True):
        for name, colour in (('ofd', 'tab:orange'), ('lckd', 'tab:blue')):
            steps, sigma, teacher = zip(*sigma_history(task, folder / name, pair), strict=True)
            axis.plot(steps, sigma, color=colour, label=TITLES[name])
        axis.plot(steps, teacher, color='black', linestyle='--', linewidth=1, label='teacher')
        axis.set_yscale('log')
        axis.set_title(f'σ of {pair.replace("-", " → ")}', fontsize=9)
        axis.set_xlabel('iteration', fontsize=8)
        axis.tick_params(labelsize=7)
    plots[0].legend(fontsize=8)
    path = folder / 'demo.png'
    figure.savefig(path, dpi=110)
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
