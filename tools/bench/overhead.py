"""Cost of each method of a study: time and peak memory of a training step, compared with the student alone.

    python tools/bench/overhead.py [STUDY.py] [--runs NAME …] [--rounds 9] [--processor] [--json FILE]

Every run of a study (by default tools/bench/studies/methods.py) is built in this process with its real model and
optimizer. In alternating rounds, after one warm-up round, each takes a whole training step (forward of both nets,
losses, backward, update), always on the same batch of its training data. Reported are medians, the ratio to the student
alone (median and quartiles of the ratios within a round), and the peak memory of a step in addition to what was
allocated before it. --processor counts the processor's time of all threads instead of the clock's, where other work
runs, too.
"""

import math
import statistics
import sys
import time
import warnings
from pathlib import Path

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH), str(BENCH.parents[1])]


def main(argv: list[str]) -> None:
    import torch
    from measure import MIB, alternate, keep_freed_memory, machine, parser, peak_memory, publish
    from mmengine.logging import MMLogger
    from study import Study

    p = parser(__doc__, rounds=9)
    p.add_argument('study', nargs='?', default=str(BENCH / 'studies' / 'methods.py'))
    p.add_argument('--runs', nargs='+', metavar='NAME')
    p.add_argument('--base', help="the run that the ratios are to; by default the study's, else 'alone'")
    p.add_argument('--processor', action='store_true', help="the processor's time, of all threads")
    args = p.parse_args(argv)
    if args.rounds < 1:
        raise ValueError('--rounds must be 1 or more')
    warnings.simplefilter('ignore')  # from the hosts' imports
    study, device = Study(args.study), torch.device(args.device)
    args.base = args.base or study.base
    for name in [args.base, *(args.runs or [])]:
        if name not in study.runs:
            raise ValueError(f'study {args.study!r}: there is no run {name!r}; it has {", ".join(study.runs)}')
    chosen = [c for c in study.cells if args.runs is None or c.run in (args.base, *args.runs)]
    chosen.sort(key=lambda c: (c.run != args.base, list(study.runs).index(c.run)))
    MMLogger.get_instance('bench', log_level='ERROR')
    keep_freed_memory()
    steps = {study.title_of(cell): step_of(study, cell, device) for cell in chosen}
    clock = time.process_time if args.processor else time.perf_counter
    seconds = alternate(steps, args.rounds, device, slow=math.inf, clock=clock)
    memory = {title: peak_memory(step, device)[1] for title, step in steps.items()}
    base = next(iter(steps))
    rows = {}
    for title, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds[base], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        rows[title] = dict(ms=1e3 * statistics.median(values), ratio=statistics.median(ratios),
                           quartiles=(quartiles[0], quartiles[2]), mib=memory[title] / MIB)  # fmt: skip
    result = dict(study=study.title, machine=machine(device), rounds=args.rounds, clock=clock.__name__, rows=rows)
    publish(markdown(result), result, args.json)


def step_of(study, cell, device):
    """A training step of one run, on a batch of its own training data, as in Runner."""
    from measure import build_for_training, training_batch
    from mmengine.config import Config
    from mmengine.optim import OptimWrapperDict, build_optim_wrapper
    from study import ROOT

    from lckd_mm.config import has_teacher
    from lckd_mm.hooks import show_batch

    cfg = Config.fromfile(ROOT / study.runs[cell.run]['config'])
    cfg.merge_from_dict(study.own_options(cell))
    model = build_for_training(cfg, device)
    batch, _ = training_batch(cfg, getattr(model, 'student', model))
    if has_teacher(cfg):
        # A real run uses more batches.
        waiting = [one for term in model.terms.values() for one in term.waiting()]
        if waiting:
            show_batch(model, waiting, batch)
        for one in waiting:
            one.connector.finish_fitting()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    # Keep the weights constant: without a trained teacher the net could diverge.
    for one in optimizer.values() if isinstance(optimizer, OptimWrapperDict) else [optimizer]:
        for group in one.param_groups:
            group['lr'] = 0.0
    return lambda: model.train_step(batch, optimizer)


def markdown(result: dict) -> str:
    from lckd_mm.reporting import table

    head = ['training step', 'ms', f'times {next(iter(result["rows"]))}', 'quartiles', 'peak memory, MiB']
    rows = [
        (title, f'{r["ms"]:.1f}', f'{r["ratio"]:.2f}', '{:.2f} to {:.2f}'.format(*r['quartiles']), f'{r["mib"]:.1f}')
        for title, r in result['rows'].items()
    ]
    first = f'{result["study"]}. Measured on: {result["machine"]}.'
    return f'{first} {result["rounds"]} rounds ({result["clock"]}).\n\n{table(head, rows, "---:")}'


if __name__ == '__main__':
    from lckd_mm.cli import run_tool

    sys.exit(run_tool(main))
