"""The main job on the embedded data set: a teacher, its student alone, with KD, and with KD + Lipschitz matching.

    python tools/demo.py [--seed 0] [--work-dir work_dirs/demo]
    python tools/demo.py --summary

Each training is tools/train.py on a config of configs/demo. What is finished is kept and reused by the next run, what
was interrupted is resumed. The end is one table and one picture.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CONFIGS = {
    'teacher': 'configs/demo/fcn_r18-w32_1xb8-digit-scenes-96x96.py',
    'alone': 'configs/demo/fcn_r18-w8_1xb8-digit-scenes-96x96.py',
    'kd': 'configs/demo/kd_fcn_r18-w32_fcn_r18-w8_1xb8-digit-scenes-96x96.py',
    'lckd': 'configs/demo/lckd_fcn_r18-w32_fcn_r18-w8_1xb8-digit-scenes-96x96.py',
}
TITLES = {'teacher': 'teacher', 'alone': 'student alone', 'kd': 'KD', 'lckd': 'KD + Lipschitz'}
STAGES = ('stage1', 'stage2', 'stage3', 'stage4')
DATA = 'data/digit_scenes'


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seed', type=int, default=0, help='of the initial weights and the order of the images')
    p.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    p.add_argument('--only', nargs='+', choices=CONFIGS, default=list(CONFIGS), help='train only these')
    p.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='handed to every training')
    p.add_argument('--summary', action='store_true', help='only print mean and deviation over the seeds that were run')
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    args = p.parse_args(argv)
    warnings.simplefilter('ignore')  # of the hosts' imports
    os.chdir(ROOT)
    if args.summary:
        print(summary(args.work_dir))
        return
    start = time.time()
    call('tools/prepare_data.py', 'digit-scenes', '--out', DATA)
    folder = args.work_dir / f'seed{args.seed}'
    finished = {name: train(name, folder, args) for name in CONFIGS if name in args.only}
    if set(finished) != set(CONFIGS):
        return
    print('evaluating on the validation scenes …', flush=True)
    rows = evaluate(finished)
    (folder / 'results.json').write_text(json.dumps(rows, indent=1) + '\n')
    picture = draw(finished, folder)
    print_table(rows, args.seed)
    print(f'{(time.time() - start) / 60:.1f} minutes; figures in {folder / "results.json"}')
    print(f'picture: {picture}')


def call(script: str, *arguments: str, log: Path | None = None) -> None:
    """Run one of the project's tools; its output goes to a log, of which the end is shown where it fails."""
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


def train(name: str, folder: Path, args: argparse.Namespace) -> Path:
    """The final checkpoint of one training, made if it is not there already; returns its path."""
    from mmengine.config import Config

    work_dir = folder / name
    options = [f'randomness.seed={args.seed}', *args.cfg_options]
    if name in ('kd', 'lckd'):
        options.append(f'model.teacher.checkpoint={final_checkpoint(folder / "teacher")}')
    text = Config.fromfile(CONFIGS[name]).pretty_text + '\n'.join(options)
    if name in ('kd', 'lckd'):
        text += (folder / 'teacher' / 'done.json').read_text()
    recipe = dict(recipe=hashlib.sha256(text.encode()).hexdigest())
    done, begun = work_dir / 'done.json', work_dir / 'begun.json'
    if done.exists() and json.loads(done.read_text()) == recipe and final_checkpoint(work_dir):
        print(f'{TITLES[name]}: finished before, kept ({work_dir})')
        return final_checkpoint(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    # Resumed only where the interrupted run had the same recipe.
    resume = begun.exists() and json.loads(begun.read_text()) == recipe and (work_dir / 'last_checkpoint').exists()
    begun.write_text(json.dumps(recipe))
    log = work_dir / 'train.log'
    print(f'{TITLES[name]}: {"resuming" if resume else "training"} … (log: {log})', flush=True)
    since = time.time()
    extra = ['--resume'] if resume else []
    call('tools/train.py', CONFIGS[name], '--work-dir', str(work_dir), *extra, '--cfg-options', *options, log=log)
    done.write_text(json.dumps(recipe))
    print(f'{TITLES[name]}: done in {time.time() - since:.0f} s', flush=True)
    return final_checkpoint(work_dir)


def final_checkpoint(work_dir: Path) -> Path | None:
    last = work_dir / 'last_checkpoint'
    path = Path(last.read_text().strip()) if last.exists() else None
    return path if path and path.exists() else None


def load(name: str, checkpoint: Path):
    """The plain host model of a run, loaded strictly: what a user of mmsegmentation would have."""
    import mmseg.models  # noqa: F401  (registers them)
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm

    from lckd_mm.checkpoint import load_strictly
    from lckd_mm.hosts import build_model

    cfg = Config.fromfile(CONFIGS['teacher' if name == 'teacher' else 'alone'])
    model = revert_sync_batchnorm(build_model(cfg.model, 'mmseg')).eval()
    load_strictly(model, str(checkpoint), name)
    return model, cfg


def evaluate(finished: dict[str, Path]) -> dict[str, dict]:
    """mIoU by mmsegmentation's own metric, parameters, and sigma of every layer, on the validation scenes."""
    import mmseg.datasets  # noqa: F401
    import torch
    from mmengine.evaluator import Evaluator
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    from lckd_mm.functional import lipschitz_gap, transmitting_norm
    from lckd_mm.hosts import preset_taps
    from lckd_mm.taps import FeatureTaps

    init_default_scope('mmseg')
    MMLogger.get_instance('demo', log_level='ERROR')  # the metric would print a table of classes for each net
    rows, sigma = {}, {}
    for name, checkpoint in finished.items():
        model, cfg = load(name, checkpoint)
        loader = Runner.build_dataloader(cfg.val_dataloader)
        evaluator = Evaluator(cfg.val_evaluator)
        evaluator.dataset_meta = loader.dataset.metainfo
        taps = FeatureTaps(preset_taps(model, 'backbone'), TITLES[name])
        layers = []
        with torch.no_grad():
            for batch in loader:
                data = model.data_preprocessor(batch, False)
                if not taps.traces:
                    taps.trace(model, lambda: model(**data, mode='tensor'))  # noqa: B023
                with taps.record(model) as features:
                    predictions = model(**data, mode='predict')
                evaluator.process(predictions, batch)
                layers.append(torch.stack([transmitting_norm(features[a], features[b]) for a, b in pairwise(STAGES)]))
        metrics = evaluator.evaluate(len(loader.dataset))
        sigma[name] = torch.cat(layers, 1)
        gap = lipschitz_gap(sigma[name], sigma['teacher'], 'log').sqrt().mean()
        rows[name] = dict(
            mIoU=float(metrics['mIoU']),
            parameters=sum(p.numel() for p in model.parameters()),
            sigma=[round(float(s), 4) for s in sigma[name].mean(1)],
            sigma_gap=float(gap),
        )
    return rows


def print_table(rows: dict[str, dict], seed: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f'FCN on digit scenes, validation, seed {seed}')
    for column in ('', 'mIoU', 'parameters', 'σ gap to the teacher'):
        table.add_column(column, justify='left' if not column else 'right')
    for name, row in rows.items():
        gap = '–' if name == 'teacher' else f'{row["sigma_gap"]:.3f}'
        table.add_row(TITLES[name], f'{row["mIoU"]:.2f}', f'{row["parameters"]:,}', gap)
    Console().print(table)
    print('σ gap: mean over layers and images of |ln σ(student) - ln σ(teacher)|, raw taps, no connectors.')


def summary(work_dir: Path) -> str:
    """A Markdown table of mean and (sample) standard deviation over all seeds in a work_dir."""
    runs = [json.loads(path.read_text()) for path in sorted(work_dir.glob('seed*/results.json'))]
    if len(runs) < 2:
        raise FileNotFoundError(f'{work_dir}: {len(runs)} seeds have results, and a deviation needs two')

    def spread(values: list[float], digits: int) -> str:
        return f'{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}'

    head = f'| {len(runs)} seeds | mIoU | better than alone | parameters | σ gap to the teacher |'
    lines = [head, '|---|---|---|---|---|']
    for name, title in TITLES.items():
        better = sum(run[name]['mIoU'] > run['alone']['mIoU'] for run in runs)
        lines.append(
            f'| {title} | {spread([run[name]["mIoU"] for run in runs], 2)} | '
            f'{"" if name == "alone" else f"{better} of {len(runs)}"} | {runs[0][name]["parameters"]:,} | '
            f'{"" if name == "teacher" else spread([run[name]["sigma_gap"] for run in runs], 3)} |'
        )
    return '\n'.join(lines)


def draw(finished: dict[str, Path], folder: Path, count: int = 6) -> Path:
    """Input, truth and each net's prediction for some validation scenes; below, sigma of each layer over time."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    import mmseg.datasets  # noqa: F401
    import numpy as np
    import torch
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS

    from lckd_mm.hooks import overlay_labels

    models = {name: load(name, checkpoint) for name, checkpoint in finished.items()}
    cfg = models['alone'][1]
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    palette = np.array(dataset.metainfo['palette'], np.uint8)
    columns = ['input', 'truth', *(TITLES[name] for name in finished)]
    figure = plt.figure(figsize=(1.75 * len(columns), 1.75 * count + 3.4), layout='constrained')
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.75 * count, 3.4])
    axes = top.subplots(count, len(columns))
    for row, index in enumerate(np.linspace(0, len(dataset) - 1, count).astype(int)):
        batch = pseudo_collate([dataset[index]])
        image = batch['inputs'][0].permute(1, 2, 0).numpy()[..., ::-1].copy()
        panels = [image, overlay_labels(image, batch['data_samples'][0].gt_sem_seg.data[0].numpy(), palette)]
        for model, _ in models.values():
            with torch.no_grad():
                (sample,) = model.test_step(batch)
            panels.append(overlay_labels(image, sample.pred_sem_seg.data[0].numpy(), palette))
        for axis, panel, title in zip(axes[row], panels, columns, strict=True):
            axis.imshow(panel, interpolation='nearest')
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=9)
    pairs = [f'{a}-{b}' for a, b in pairwise(STAGES)]
    plots = bottom.subplots(1, len(pairs))
    for axis, pair in zip(plots, pairs, strict=True):
        teacher = None
        for name, colour in (('kd', 'tab:orange'), ('lckd', 'tab:blue')):
            history = scalars(folder / name)
            steps = [h['step'] for h in history if f'sigma_student/{pair}' in h]
            axis.plot(steps, [h[f'sigma_student/{pair}'] for h in history if f'sigma_student/{pair}' in h],
                      color=colour, label=TITLES[name])  # fmt: skip
            teacher = [h[f'sigma_teacher/{pair}'] for h in history if f'sigma_teacher/{pair}' in h]
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


def scalars(work_dir: Path) -> list[dict]:
    """The training scalars that the Visualizer wrote, newest run last, one entry a step."""
    by_step: dict[int, dict] = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if 'loss' in entry and 'step' in entry:
                by_step[entry['step']] = entry
    return [by_step[step] for step in sorted(by_step)]


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit('interrupted; run it again to go on')
    except Exception as error:
        if '--debug' in sys.argv:
            raise
        sys.exit(f'error: {error}')
