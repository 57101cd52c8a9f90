"""Time of a distillation config's training step, compared with its parts.

    python tools/bench/step.py CONFIG [--rounds 7] [--cfg-options KEY=VALUE …] [--json FILE]

Prepares one batch of the config's training data (fabricated images if the data is not on disk), then alternately runs
the student's step alone, the teacher's forward pass, the whole distillation step, and that step without each of its
terms. A step is forward, backward and the optimizer's update.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(argv: list[str]) -> None:
    import measure
    import torch
    from mmengine.config import DictAction
    from mmengine.logging import MMLogger

    from lckd_mm.cli import read_config
    from lckd_mm.config import has_teacher

    p = measure.parser(__doc__, rounds=7)
    p.add_argument('config')
    p.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE')
    args = p.parse_args(argv)
    args.launcher, args.work_dir = 'none', None
    cfg = read_config(args)
    if not has_teacher(cfg):
        raise ValueError(f'{args.config!r} must be a distillation with a teacher (lckd_mm.Distiller)')
    measure.keep_freed_memory()
    MMLogger.get_instance('bench', log_level='ERROR')
    device = torch.device(args.device)
    distiller = measure.build_for_training(cfg, device)
    batch, source = measure.training_batch(cfg, distiller.student)
    data = distiller.data_preprocessor(batch, True)
    times = measure.alternate(_sides(distiller, data, cfg), args.rounds, device, slow=60.0)
    result = dict(config=args.config, machine=measure.machine(device), batch=source, rounds=args.rounds)
    result |= dict(ms=measure.median_ms(times), terms=list(distiller.terms))
    measure.publish(markdown(result), result, args.json)


def _sides(distiller, data: dict, cfg) -> dict[str, Callable[[], None]]:
    """The functions to time, by name."""
    import torch
    from mmengine.optim import build_optim_wrapper

    from lckd_mm.distillation import Objective

    inputs, samples = data['inputs'], data['data_samples']
    alone = copy.deepcopy(distiller.student)
    teacher, terms = distiller.teacher, distiller.terms
    wrappers = {id(m): build_optim_wrapper(m, copy.deepcopy(cfg.optim_wrapper)) for m in (alone, distiller)}

    def step(model) -> None:
        losses = model(inputs, samples, mode='loss')
        loss, _ = model.parse_losses(losses)
        wrappers[id(model)].update_params(loss)

    def without(names: set[str]) -> Callable[[], None]:
        def run() -> None:
            distiller.terms = Objective({n: t for n, t in terms.items() if n not in names})
            try:
                step(distiller)
            finally:
                distiller.terms = terms

        return run

    def teacher_for(names: list[str]) -> Callable[[], None]:
        return lambda: teacher(distiller.teacher_taps, names, inputs, samples) and None

    @torch.no_grad()
    def teacher_whole() -> None:
        teacher.model(teacher.convert(inputs, samples), samples, mode='tensor')

    sides = {
        'student': lambda: step(alone),
        'teacher': teacher_for(distiller._recorded()[1]),
        'teacher_whole': teacher_whole,
        **{f'teacher for {name}': teacher_for(term.teacher.names) for name, term in terms.items()},
        'distillation': lambda: step(distiller),
        # A term that lends its connectors cannot be removed by itself; without the only term it is the student alone.
        **{
            f'without {n}': without({n})
            for n in terms
            if len(terms) > 1 and all(t.student.lender != n for t in terms.values())
        },
    }
    connected = {name: _connectors(distiller, term, data) for name, term in terms.items() if len(term.connectors)}
    return sides | {f'connectors {name}': run for name, run in connected.items()}


def _connectors(distiller, term, data: dict) -> Callable[[], None]:
    """Forward and backward of one term's connectors on the features of one batch."""
    import torch

    def levels(x) -> list:
        return [x] if isinstance(x, torch.Tensor) else x

    inputs, samples = data['inputs'], data['data_samples']
    with torch.no_grad(), distiller.student_taps.record(distiller.student, term.student.names) as features:
        distiller.student(inputs, samples, mode='loss')
    targets = distiller.teacher(distiller.teacher_taps, term.teacher.names, inputs, samples)
    pairs = [
        (connector, x.detach().clone().requires_grad_(), like)
        for connector, mine, theirs in zip(term.connectors, term.student.names, term.teacher.names)
        for x, like in zip(levels(features[mine]), levels(targets[theirs]))
    ]

    def run() -> None:
        outputs = [connector(x, like) for connector, x, like in pairs]
        torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])

    return run


def markdown(result: dict) -> str:
    from lckd_mm.reporting import table

    ms = result['ms']
    parts = ms['student'] + ms['teacher']
    connectors = sum(value for name, value in ms.items() if name.startswith('connectors '))
    whole = ms['teacher_whole']

    def saved(value: float) -> str:
        return f'stopping early saves {1 - value / whole:.1%} of the whole'

    rows = [
        ('student, step alone', ms['student'], ''),
        ('teacher, whole forward', whole, ''),
        ('teacher, forward to its last tap', ms['teacher'], saved(ms['teacher'])),
        *((f'teacher, for {n} alone', ms[f'teacher for {n}'], saved(ms[f'teacher for {n}'])) for n in result['terms']),
        ('distillation, step', ms['distillation'], f'{ms["distillation"] / parts:.3f} of student + teacher'),
    ]
    if connectors:
        less = ms['distillation'] - connectors
        rows.append(('connectors, forward and backward', connectors, f'without them: {less / parts:.3f}'))
    for name in (name for name in result['terms'] if f'without {name}' in ms):
        value = ms[f'without {name}']
        rows.append((f'distillation without {name}', value, f'the term takes {ms["distillation"] - value:.1f} ms'))
    lines = [f'{result["config"]}: {result["batch"]}. Measured on: {result["machine"]}.']
    lines += [f'Medians of {result["rounds"]} rounds.', '']
    return '\n'.join([*lines, table(['', 'ms', ''], [(title, f'{value:,.1f}', note) for title, value, note in rows])])


if __name__ == '__main__':
    from lckd_mm.cli import run_tool

    sys.exit(run_tool(main))
