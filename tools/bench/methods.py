"""Every method on the digits, with equal budgets, over several seeds.

    python tools/bench/methods.py [--seeds 5] [--jobs 2] [--work-dir work_dirs/digits]

For each seed a teacher is trained, then the student alone and by each config of configs/digits. What is finished is
kept and not run again. The end is a Markdown table (mean and deviation of the accuracy on the 899 scans of the second
half, after the last epoch), the same figures as JSON, and a plot.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = '_wrn16-4_wrn10-1_1xb30_digits300.py'
TEACHER, ALONE = 'wrn16-4_1xb30_digits.py', 'wrn10-1_1xb30_digits300.py'
TITLES = {
    'teacher': 'teacher (WRN16-4, 898 scans)',
    'alone': 'student alone (WRN10-1, 300 scans)',
    'kd': 'KD',
    'dkd': 'DKD',
    'kd-pt': 'KD, partial: true class',
    'kd-topk': 'KD, partial: 3 largest',
    'kd-sim': 'KD, partial: similar rows',
    'kd-rel': 'KD, partial: super-classes',
    'ls': 'label smoothing',
    'fitnets': 'FitNets',
    'at': 'AT',
    'fsp': 'FSP',
    'ft': 'FT',
    'ie': 'IE',
    'ie-at': 'IE over AT',
    'ie-ofd': 'IE over OFD',
    'jacobian': 'Jacobian matching, noise',
    'ab': 'AB',
    'afd': 'AFD',
    'rkd': 'RKD',
    'lgan': 'Lipschitz critic (LGAN)',
    'ofd': 'OFD',
    'lckd-absolute': 'Lipschitz, absolute',
    'lckd-relative': 'Lipschitz, relative',
    'lckd-log': 'Lipschitz, log',
    'lckd-kd': 'KD + Lipschitz, log',
    'kd-ofd': 'KD + OFD',
    'lckd-ofd': 'OFD + Lipschitz, log',
    'lckd-ofd-kd': 'OFD + KD + Lipschitz, log',
    'online-kd': 'online KD, two students',
    'online-afd': 'AFD (online, adversarial), two students',
    'online-ie': 'IE, mutual, two students',
}
#: Without a teacher: two students learn from each other.
ONLINE = {method: f'{method}_wrn10-1_wrn10-1' for method in ('online-kd', 'online-afd', 'online-ie')}


def config_of(method: str) -> str:
    if method in ONLINE:
        return f'configs/digits/{ONLINE[method]}_1xb30_digits300.py'
    name = {'teacher': TEACHER, 'alone': ALONE}.get(method, method + SUFFIX)
    return f'configs/digits/{name}'


def taught(method: str) -> bool:
    return method not in ('teacher', 'alone', *ONLINE)


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=5, help='seeds 0 to this, exclusive')
    p.add_argument('--first-seed', type=int, default=0)
    p.add_argument('--methods', nargs='+', choices=TITLES, default=list(TITLES))
    p.add_argument('--jobs', type=int, default=os.cpu_count() or 1, help='trainings at a time, a thread each')
    p.add_argument('--work-dir', type=Path, default=Path('work_dirs/digits'))
    handed = 'handed to every training; those of model. and default_hooks. to the distillations only'
    p.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=handed)
    args = p.parse_args(argv)
    warnings.simplefilter('ignore')  # of the hosts' imports
    os.chdir(ROOT)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    methods = [m for m in TITLES if m in args.methods and m != 'teacher']
    # Read here, one by one: the libraries that read configs are not made for threads.
    teachers, students = (
        [(m, seed, args, recipe_of(m, seed, args)) for seed in seeds for m in names] for names in (['teacher'], methods)
    )
    with ThreadPoolExecutor(args.jobs) as pool:
        # The teachers first; every distillation reads its own seed's.
        for jobs in (teachers, students):
            list(pool.map(lambda job: train(*job), jobs))
    results = {m: {s: result(m, s, args.work_dir) for s in seeds} for m in ['teacher', *methods]}
    args.work_dir.mkdir(parents=True, exist_ok=True)
    (args.work_dir / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    table = markdown(results)
    (args.work_dir / 'results.md').write_text(table + '\n')
    print(table)
    print(f'figures: {args.work_dir / "results.json"}; picture: {draw(results, args.work_dir / "methods.png")}')


def train(method: str, seed: int, args: argparse.Namespace, recipe: str) -> None:
    """One training, if it is not finished already."""
    folder = args.work_dir / f'seed{seed}' / method
    if (folder / 'recipe').exists() and (folder / 'recipe').read_text() == recipe:
        return
    options = [f'randomness.seed={seed}', *options_of(method, args)]
    if taught(method):
        last = (args.work_dir / f'seed{seed}' / 'teacher' / 'last_checkpoint').read_text().strip()
        options.append(f'model.teacher.checkpoint={last}')
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'recipe').unlink(missing_ok=True)
    for old in folder.glob('*/vis_data/scalars.json'):
        old.unlink()  # of a run that was interrupted, or had another recipe
    command = [sys.executable, '-W', 'ignore', 'tools/train.py', config_of(method), '--work-dir', str(folder)]
    with open(folder / 'train.log', 'w') as log:
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}
        done = subprocess.run([*command, '--cfg-options', *options], stdout=log, stderr=subprocess.STDOUT, env=env)
    if done.returncode:
        raise RuntimeError(f'{method}, seed {seed}: training failed; see {folder / "train.log"}')
    (folder / 'recipe').write_text(recipe)
    print(f'seed {seed}, {TITLES[method]}: {result(method, seed, args.work_dir)["accuracy"]:.2f} %', flush=True)


def options_of(method: str, args: argparse.Namespace) -> list[str]:
    plain = method in ('teacher', 'alone')
    return [option for option in args.cfg_options if not (plain and option.startswith(('model.', 'default_hooks.')))]


def recipe_of(method: str, seed: int, args: argparse.Namespace) -> str:
    """A checksum of all that a training follows from: its config with what it inherits, options, and the teacher's."""
    from mmengine.config import Config

    text = Config.fromfile(config_of(method)).pretty_text + json.dumps(options_of(method, args))
    if taught(method):
        text += recipe_of('teacher', seed, args)
    return hashlib.sha256(text.encode()).hexdigest()


def result(method: str, seed: int, work_dir: Path) -> dict[str, float]:
    """The last validation's accuracy in percent, that of further nets and their ensemble, and each term's mean part of
    the loss."""
    (file,) = (work_dir / f'seed{seed}' / method).glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    training = [e for e in entries if 'loss' in e]
    # Of nets that learn together, net0.loss_kd and net1.loss_kd are one part.
    keys = {k: k.rpartition('.')[2] for e in training for k in e}
    terms = sorted({t for t in keys.values() if t.startswith('loss_') and t != 'loss_task'})
    shares = {
        t: statistics.mean(sum(v for k, v in e.items() if keys[k] == t) / e['loss'] for e in training if e['loss'] > 0)
        for t in terms
    }
    last = [e for e in entries if 'accuracy/top1' in e][-1]
    others = {k.removesuffix('/accuracy/top1'): v for k, v in last.items() if k.endswith('/accuracy/top1')}
    shares = {f'share {t.removeprefix("loss_")}': s for t, s in shares.items()}
    return dict(accuracy=last['accuracy/top1'], **{f'also {k}': v for k, v in others.items()}, **shares)


def rows(results: dict) -> dict[str, dict]:
    """Title to runs; of nets that learn together a row each, and one of their ensemble."""
    found = {}
    for method, runs in results.items():
        also = [k for k in next(iter(runs.values())) if k.startswith('also ')]
        found[TITLES[method] + (': net0' if also else '')] = runs
        for key in also:
            title = f'{TITLES[method]}: {key.removeprefix("also ")}'
            found[title] = {seed: dict(accuracy=run[key]) for seed, run in runs.items()}
    return found


def accuracies(runs: dict) -> list[float]:
    return [run['accuracy'] for run in runs.values()]


def spread(values: list[float]) -> str:
    return f'{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}' if len(values) > 1 else f'{values[0]:.2f}'


def markdown(results: dict) -> str:
    count = len(next(iter(results.values())))
    alone = results.get('alone')
    lines = [f'| {count} seeds | accuracy, % | against alone | better in | part of the loss |', '|---|---|---|---|---|']
    for title, runs in rows(results).items():
        gain = wins = ''
        if alone and title not in (TITLES['alone'], TITLES['teacher']):
            differences = [a - b for a, b in zip(accuracies(runs), accuracies(alone), strict=True)]
            gain = f'{statistics.mean(differences):+.2f}'
            wins = f'{sum(d > 0 for d in differences)} of {count}'
        keys = [k for k in next(iter(runs.values())) if k.startswith('share ')]
        parts = [f'{k.removeprefix("share ")} {statistics.mean(r[k] for r in runs.values()):.0%}' for k in keys]
        lines.append(f'| {title} | {spread(accuracies(runs))} | {gain} | {wins} | {", ".join(parts)} |')
    return '\n'.join(lines)


def draw(results: dict, path: Path) -> Path:
    """Every run as a dot, means as bars."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    shown = {t: accuracies(r) for t, r in rows(results).items() if t != TITLES['teacher']}
    figure, axis = plt.subplots(figsize=(7, 0.3 * len(shown) + 0.9), layout='constrained')
    for row, values in enumerate(shown.values()):
        axis.plot(values, [row] * len(values), 'o', color='tab:blue', alpha=0.6, markersize=5)
        axis.plot([statistics.mean(values)] * 2, [row - 0.3, row + 0.3], color='black', linewidth=2)
    if TITLES['alone'] in shown:
        axis.axvline(statistics.mean(shown[TITLES['alone']]), color='grey', linestyle=':', linewidth=1)
    axis.set_yticks(range(len(shown)), list(shown))
    axis.set_xlabel('accuracy, %; a dot a seed, a bar the mean')
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.grid(axis='x', alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit('interrupted; run it again to go on')
    except RuntimeError as error:
        sys.exit(f'error: {error}')
