"""Pruning on the digits, with and without distillation from the unpruned net: accuracy, CEV and SDE.

    python tools/bench/pruning.py [--seeds 5] [--work-dir work_dirs/digits]

Runs the study tools/bench/studies/pruning.py: for each seed WRN10-1 is trained alone, then pruned, and pruned with KD
from its own unpruned weights. Prints a Markdown table for the 899 scans of the second half: accuracy (mean and
deviation), CEV and SDE in the convention of 2021, from rates averaged over the seeds, and the number of samples whose
modal predictions differ (PIE).
"""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH), str(BENCH.parent / 'analysis')]

from class_bias import compare  # noqa: E402
from study import ROOT, Cell, Study, call, run_all  # noqa: E402

from lckd_mm.evaluation.predictions import read_predictions  # noqa: E402
from lckd_mm.reporting import spread, table  # noqa: E402
from lckd_mm.storage.files import last_checkpoint  # noqa: E402


def main(argv: list[str]) -> None:
    study = Study(BENCH / 'studies' / 'pruning.py')
    pruned = [name for name in study.runs if name != 'alone']
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=5, help='seeds 0 to this, exclusive')
    p.add_argument('--first-seed', type=int, default=0)
    p.add_argument('--jobs', type=int, default=os.cpu_count() or 1, help='runs at a time')
    p.add_argument('--variants', nargs='+', choices=pruned, default=pruned)
    p.add_argument('--work-dir', type=Path)
    p.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='handed to every training')
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    args = p.parse_args(argv)
    warnings.simplefilter('ignore')  # from the hosts' imports
    os.chdir(ROOT)
    study = Study(study.path, args.work_dir, args.cfg_options)
    # Leave out the runs' own baselines in the study: here everything is compared with the unpruned net.
    cells = [c for c in study.cells if c.run in ('alone', *args.variants)]
    seeds = list(range(args.first_seed, args.first_seed + args.seeds))
    failed = run_all(study, cells, seeds, args.jobs)
    if failed:
        raise RuntimeError('; '.join(failed))
    files = {c.run: [dump(study, c, seed) for seed in seeds] for c in cells}
    runs = {run: [read_predictions(path, run) for path in paths] for run, paths in files.items()}
    results = {run: compare(runs['alone'], r) for run, r in runs.items()}
    for result in results.values():
        result.pop('bias')
        result.pop('table')
    (study.work_dir / 'pruning.json').write_text(json.dumps(results, indent=1) + '\n')
    print(markdown(study, results))


def dump(study: Study, cell: Cell, seed: int) -> Path:
    """The predictions of a finished run on the test scans."""
    folder = study.folder(cell, seed)
    file, checkpoint = folder / 'predictions.pkl', last_checkpoint(folder)
    if checkpoint is None:
        raise RuntimeError(f'{folder}: its checkpoint is gone; remove the folder and run again')
    if not file.exists() or file.stat().st_mtime < checkpoint.stat().st_mtime:
        command = ['tools/test.py', study.runs[cell.run]['config'], str(checkpoint)]
        command += ['--work-dir', str(folder / 'test'), '--dump', str(file)]
        call(command, folder / 'test.log', f'{cell.name}, seed {seed}: test')
    return file


def markdown(study: Study, results: dict) -> str:
    head = [f'{len(results["alone"]["accuracy"])} seeds', 'accuracy, %', 'CEV', 'SDE', 'classes left out', 'PIE']
    rows = []
    for run, r in results.items():
        bias = [f'{r[key]["2021"]:.1f}' for key in ('cev', 'sde')] + [str(len(r['left_out']))]
        bias = [''] * 4 if run == 'alone' else [*bias, f'{r["pie"]} of {r["samples"]}']
        rows.append([study.runs[run]['title'], spread(r['accuracy']), *bias])
    return table(head, rows)


if __name__ == '__main__':
    from lckd_mm.cli import run_tool

    sys.exit(run_tool(main))
