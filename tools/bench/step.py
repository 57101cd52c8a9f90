"""Time of a distillation config's training step, compared with its parts.

    python tools/bench/step.py CONFIG [--rounds 7] [--cheaper] [--processor] [--cfg-options KEY=VALUE …] [--json FILE]

Prepares one batch of the config's training data (fabricated images if the data is not on disk), then alternately runs
the student's step alone, the teacher's forward pass, the whole distillation step, that step without each of its terms,
and, with --cheaper, with each option that makes the teacher cost less. A step is forward, backward and the optimizer's
update. --processor counts the processor's time of all threads instead of the clock's, where other work runs, too.
"""

import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(argv: list[str]) -> None:
    import measure
    import torch
    from mmengine.logging import MMLogger

    from lckd_mm.cli import Options, read_config
    from lckd_mm.config import has_teacher

    p = measure.parser(__doc__, rounds=7)
    p.add_argument('config')
    p.add_argument('--cfg-options', nargs='+', action=Options, default={}, metavar='KEY=VALUE')
    p.add_argument('--cheaper', action='store_true', help="the teacher's options in place of the parts of the step")
    p.add_argument('--processor', action='store_true', help="the processor's time, of all threads")
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
    clock = time.process_time if args.processor else time.perf_counter
    sides = _sides(distiller, data, cfg, args.cheaper)
    times = measure.alternate(sides, args.rounds, device, slow=60.0, clock=clock)
    result = dict(config=args.config, machine=measure.machine(device), batch=source, rounds=args.rounds)
    result |= dict(ms=measure.median_ms(times), terms=list(distiller.terms), clock=clock.__name__)
    measure.publish((cheaper if args.cheaper else markdown)(result), result, args.json)


#: What makes a teacher cost less.
OPTIONS = {
    'channels_last': dict(channels_last=True),
    'fold_bn': dict(fold_bn=True),
    'channels_last, fold_bn': dict(channels_last=True, fold_bn=True),
    "precision='bf16'": dict(precision='bf16'),
    'all three': dict(precision='bf16', channels_last=True, fold_bn=True),
}


def _sides(distiller, data: dict, cfg, cheaper: bool) -> dict[str, Callable[[], None]]:
    """The functions to time, by name."""
    import torch
    from mmengine.optim import build_optim_wrapper

    from lckd_mm.contexts import computes_in_bfloat16
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

    def teacher_for(names: list[str], one=teacher) -> Callable[[], None]:
        return lambda: one(distiller.teacher_taps, names, inputs, samples) and None

    def with_teacher(other) -> Callable[[], None]:
        def run() -> None:
            (one,) = distiller.teachers.values()
            one.teacher = other
            try:
                step(distiller)
            finally:
                one.teacher = teacher

        return run

    def idle() -> None:
        # A share of the loss would still be measured.
        running = {term: term.running for term in terms.values()}
        for term in running:
            term.scale, term.running = 0.0, None
        try:
            step(distiller)
        finally:
            for term, own in running.items():
                term.scale, term.running = 1.0, own

    if cheaper:
        names, plain = distiller.terms.used()[1], _teacher(cfg, distiller, {})
        sides = {
            'student': lambda: step(alone),
            'teacher': teacher_for(names, plain),
            'distillation': with_teacher(plain),
            'distillation, every weight 0': idle,
        }
        for name, options in OPTIONS.items():
            if 'precision' in options and not computes_in_bfloat16(inputs.device.type):
                continue
            other = _teacher(cfg, distiller, options)
            sides[f'teacher, {name}'] = teacher_for(names, other)
            sides[f'distillation, {name}'] = with_teacher(other)
        return sides

    @torch.no_grad()
    def teacher_whole() -> None:
        teacher.model(teacher.convert(inputs, samples), samples, mode='tensor')

    sides = {
        'student': lambda: step(alone),
        'teacher': teacher_for(distiller.terms.used()[1]),
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


def _teacher(cfg, distiller, options: dict):
    """A teacher of the same weights, with these options that make it cost less, and none of the config's."""
    from lckd_mm.distillation import FrozenTeacher

    plain = {key: value for key, value in cfg.model.teacher.items() if key not in OPTIONS['all three']}
    other = FrozenTeacher(**plain, **options)
    other.model.load_state_dict(distiller.teacher.model.state_dict())
    other.move(lambda x: x.to(next(distiller.parameters()).device))
    other.match_inputs(distiller.student.data_preprocessor)
    other.loaded = True
    return other


def _connectors(distiller, term, data: dict) -> Callable[[], None]:
    """Forward and backward of one term's connectors on the features of one batch."""
    import torch

    from lckd_mm.distillation.side import levels

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
    lines += [f'Medians of {result["rounds"]} rounds, ms ({result["clock"]}).', '']
    return '\n'.join([*lines, table(['', 'ms', ''], [(title, f'{value:,.1f}', note) for title, value, note in rows])])


def cheaper(result: dict) -> str:
    from lckd_mm.reporting import table

    ms, plain = result['ms'], (result['ms']['teacher'], result['ms']['distillation'])
    rows = [('student, step alone', '', '', f'{ms["student"]:,.0f}', f'{ms["student"] / plain[1]:.2f}')]
    for name in ['', *(f', {name}' for name in OPTIONS if f'teacher, {name}' in ms)]:
        values = ms[f'teacher{name}'], ms[f'distillation{name}']
        cells = [cell for value, base in zip(values, plain) for cell in (f'{value:,.0f}', f'{value / base:.2f}')]
        rows.append((name.removeprefix(', ') or 'plain teacher', *cells))
    idle = ms['distillation, every weight 0']
    rows.append(('every weight 0', '', '', f'{idle:,.0f}', f'{idle / plain[1]:.2f}'))
    lines = [f'{result["config"]}: {result["batch"]}. Measured on: {result["machine"]}.']
    lines += [f'Medians of {result["rounds"]} rounds, ms ({result["clock"]}).', '']
    return '\n'.join([*lines, table(['', 'teacher', '/ plain', 'step', '/ plain'], rows)])


if __name__ == '__main__':
    from lckd_mm.cli import run_tool

    sys.exit(run_tool(main))
