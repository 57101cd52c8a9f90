"""Pruning on the digits, with and without distillation from what the net was: accuracy, CEV and SDE.

    python tools/bench/pruning.py [--seeds 5] [--work-dir work_dirs/digits]

For each seed WRN10-1 is trained alone (as in tools/bench/methods.py), then pruned, and pruned with KD from its own
unpruned weights, by the configs pruned*.py of configs/digits. What is finished is kept and not run again. The end is a
Markdown table, on the 899 scans of the second half: accuracy (mean and deviation), CEV and SDE in the convention of
2021, from rates that are averaged over the seeds first, and the samples whose modal predictions differ (PIE).
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT / 'tools' / 'analysis')]

import methods  # noqa: E402
from class_bias import compare  # noqa: E402
from methods import recipe_of, spread  # noqa: E402

from lckd_mm.predictions import read_predictions  # noqa: E402

VARIANTS = {
    'pruned': ('pruned_wrn10-1_1xb30_digits300.py', 'pruned, 80 % of the weights'),
    'pruned-kd': ('pruned-kd_wrn10-1_wrn10-1_1xb30_digits300.py', 'the same, with KD'),
    'pruned-channels': ('pruned-channels_wrn10-1_1xb30_digits300.py', 'pruned, 45 % of the channels'),
    'pruned-channels-kd': ('pruned-channels-kd_wrn10-1_wrn10-1_1xb30_digits300.py', 'the same, with KD'),
}


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=5, help='seeds 0 to this, exclusive')
    p.add_argument('--first-seed', type=int, default=0)
    p.add_argument('--variants', nargs='+', choices=VARIANTS, default=list(VARIANTS))
    p.add_argument('--work-dir', type=Path, default=Path('work_dirs/digits'))
    p.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='handed to every training')
    args = p.parse_args(argv)
    warnings.simplefilter('ignore')  # of the hosts' imports
    os.chdir(ROOT)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    files: dict[str, list[Path]] = {v: [] for v in ('alone', *args.variants)}
    for seed in seeds:
        methods.train('alone', seed, args, recipe_of('alone', seed, args))
        files['alone'].append(dump('alone', methods.config_of('alone'), seed, args))
        for variant in args.variants:
            train(variant, seed, args)
            files[variant].append(dump(variant, f'configs/digits/{VARIANTS[variant][0]}', seed, args))
    runs = {v: [read_predictions(path, v) for path in paths] for v, paths in files.items()}
    results = {v: compare(runs['alone'], r) for v, r in runs.items()}
    for result in results.values():
        result.pop('bias')
        result.pop('table')
    (args.work_dir / 'pruning.json').write_text(json.dumps(results, indent=1) + '\n')
    print(markdown(results))


def train(variant: str, seed: int, args: argparse.Namespace) -> None:
    """One pruning, if it is not finished already."""
    from mmengine.config import Config

    folder = args.work_dir / f'seed{seed}' / variant
    config = f'configs/digits/{VARIANTS[variant][0]}'
    recipe = Config.fromfile(config).pretty_text + json.dumps(args.cfg_options) + recipe_of('alone', seed, args)
    recipe = hashlib.sha256(recipe.encode()).hexdigest()
    if (folder / 'recipe').exists() and (folder / 'recipe').read_text() == recipe:
        return
    before = last(args.work_dir, 'alone', seed)
    options = [f'randomness.seed={seed}', f'load_from={before}', *args.cfg_options]
    if variant.endswith('-kd'):
        options.append(f'model.teacher.checkpoint={before}')
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'recipe').unlink(missing_ok=True)
    run(['tools/train.py', config, '--work-dir', str(folder), '--cfg-options', *options], folder / 'train.log')
    (folder / 'predictions.pkl').unlink(missing_ok=True)
    (folder / 'recipe').write_text(recipe)
    print(f'seed {seed}, {variant}: trained', flush=True)


def dump(variant: str, config: str, seed: int, args: argparse.Namespace) -> Path:
    """The predictions of a finished training on the test scans."""
    folder = args.work_dir / f'seed{seed}' / variant
    file, checkpoint = folder / 'predictions.pkl', last(args.work_dir, variant, seed)
    if not file.exists() or file.stat().st_mtime < Path(checkpoint).stat().st_mtime:
        options = ['--work-dir', str(folder / 'test'), '--dump', str(file)]
        run(['tools/test.py', config, checkpoint, *options], folder / 'test.log')
    return file


def last(work_dir: Path, variant: str, seed: int) -> str:
    """The last checkpoint of a run, wherever its work_dir has been moved since."""
    folder = work_dir / f'seed{seed}' / variant
    return str(folder / Path((folder / 'last_checkpoint').read_text().strip()).name)


def run(command: list[str], log: Path) -> None:
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}
    with open(log, 'w') as file:
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', *command], stdout=file, stderr=subprocess.STDOUT, env=env
        )
    if done.returncode:
        raise RuntimeError(f'{command[0]} failed; see {log}')


def markdown(results: dict) -> str:
    count = len(results['alone']['accuracy'])
    lines = [f'| {count} seeds | accuracy, % | CEV | SDE | classes left out | PIE |', '|---|---|---|---|---|---|']
    for variant, r in results.items():
        cells = [spread(r['accuracy']), '', '', '', '']
        title = 'unpruned (WRN10-1, 300 scans)'
        if variant != 'alone':
            title = VARIANTS[variant][1]
            scores = (f'{r[key]["2021"]:.1f}' for key in ('cev', 'sde'))
            cells = [cells[0], *scores, str(len(r['left_out'])), f'{r["pie"]} of {r["samples"]}']
        lines.append(f'| {title} | {" | ".join(cells)} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit('interrupted; run it again to go on')
    except RuntimeError as error:
        sys.exit(f'error: {error}')
