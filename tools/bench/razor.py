"""The same distillation with lckd_mm and with mmrazor 1.0.0: lines of config, time, memory, files, equality.

mmrazor gets a separate environment on top of the project's. This does not work with the forks, whose mmengine does not
find mmseg:: configs without lckd_mm:

    python -m venv .venv-razor
    .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \\
        > .venv-razor/lib/python3.11/site-packages/project.pth
    .venv-razor/bin/pip install --no-deps mmrazor==1.0.0 ordered-set==4.1.0

Then make the data and the teacher, and run the comparison:

    python tools/demo.py --only teacher
    .venv-razor/bin/python tools/bench/razor.py [--rounds 7] [--json FILE]

The configs are in tools/bench/razor. mmrazor is imported with a stub for its quantization (razor_side.py says why).
Each side trains in its own process, in alternating rounds. Ratios are taken between neighbouring runs, so they are
reliable even if times on a shared machine vary. ``--sides lckd_mm alone`` does not need mmrazor.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]

from razor_side import CONFIGS  # noqa: E402

MIB = 2**20
TITLES = {'lckd_mm': 'lckd_mm', 'mmrazor': 'mmrazor', 'alone': 'student alone'}


def main(argv: list[str]) -> None:
    from mmengine.config import DictAction

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--sides', nargs='+', choices=CONFIGS, default=list(CONFIGS))
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--steps', type=int, default=40, help='of each process, after those of --warmup')
    p.add_argument('--warmup', type=int, default=15)
    p.add_argument('--teacher', default='work_dirs/demo/seed0/teacher/iter_800.pth', help='checkpoint of the wide net')
    p.add_argument('--work-dir', type=Path, default=Path('work_dirs/bench/razor'))
    p.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                   help='handed to all sides')  # fmt: skip
    p.add_argument('--json', type=Path, help='write the figures to this file, too')
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    args = p.parse_args(argv)
    os.chdir(ROOT)
    if 'mmrazor' in args.sides and importlib.util.find_spec('mmrazor') is None:
        raise ImportError(
            f'mmrazor is not installed for {sys.executable}; make it an environment of its own with the three commands '
            'at the top of tools/bench/razor.py, or leave it out with --sides lckd_mm alone'
        )
    work_dir = args.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    options = ['--options', json.dumps(args.cfg_options)]
    teacher = weights_alone(args.teacher, work_dir / 'teacher.pth')
    lengths = ['--steps', str(args.steps), '--warmup', str(args.warmup)]
    rounds: dict[str, list[dict]] = {side: [] for side in args.sides}
    for number in range(args.rounds):
        for side in args.sides:
            figures = child('razor_side.py', side, work_dir / side, teacher, *lengths, *options, work_dir=work_dir)
            rounds[side].append(figures)
            print(f'round {number + 1}, {side}: {figures["step_ms"]:.1f} ms', file=sys.stderr, flush=True)
    result = dict(steps=args.steps, rounds=rounds, config={side: size_of(CONFIGS[side]) for side in args.sides})
    write(result, args.json)
    if {'lckd_mm', 'mmrazor'} <= set(args.sides):
        result['unmodified'] = unmodified()
        result['compared'] = child('razor_compare.py', work_dir, teacher, args.teacher, *options, work_dir=work_dir)
        write(result, args.json)
    print(markdown(result))


def write(result: dict, path: Path | None) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + '\n')


def weights_alone(checkpoint: str, out: Path) -> Path:
    """The teacher's weights in a file that torch can read without allowing mmengine's classes."""
    import torch

    from lckd_mm.storage.checkpoint import read_checkpoint

    if not Path(checkpoint).is_file():
        raise FileNotFoundError(
            f'no teacher at {checkpoint!r}; train it with `python tools/demo.py --only teacher`, or give --teacher'
        )
    content = read_checkpoint(checkpoint, '--teacher')
    torch.save(dict(state_dict=content.get('state_dict', content)), out)
    return out


def child(script: str, *arguments: object, work_dir: Path) -> dict:
    """Run a script of this folder and return the JSON that it writes."""
    out = work_dir / 'figures.json'
    out.unlink(missing_ok=True)
    command = [sys.executable, '-W', 'ignore', str(Path(__file__).parent / script), *map(str, arguments)]
    done = subprocess.run([*command, '--out', str(out)], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ['no message']
        log = work_dir / 'failed.log'
        log.write_text(done.stdout + done.stderr)
        raise RuntimeError(f'{script} {arguments[0]}: {last[0]}; see {log}')
    return json.loads(out.read_text())


def unmodified() -> str:
    """The outcome of a plain `import mmrazor.models`: the error, or 'imported'."""
    command = [sys.executable, '-W', 'ignore', '-c', 'import mmrazor.models']
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else 'imported'


def size_of(path: str) -> dict[str, int]:
    """Number of non-blank, non-comment lines of a config, and of tokens, which do not depend on line breaks."""
    lines = [line.strip() for line in Path(path).read_text().splitlines()]
    kinds = (tokenize.NAME, tokenize.STRING, tokenize.NUMBER, tokenize.OP)
    with open(path, 'rb') as file:
        tokens = sum(token.type in kinds for token in tokenize.tokenize(file.readline))
    return dict(lines=sum(bool(line) and not line.startswith('#') for line in lines), tokens=tokens)


def markdown(result: dict) -> str:
    rounds, sides = result['rounds'], list(result['rounds'])
    both = {'lckd_mm', 'mmrazor'} <= set(sides)

    def row(title: str, value: Callable[[dict], float], digits: int = 1) -> str:
        values = {side: [value(figures) for figures in rounds[side]] for side in sides}
        cells = [f'{statistics.median(v):,.{digits}f}' for v in values.values()]
        if both:
            ratios = [a / b for a, b in zip(values['lckd_mm'], values['mmrazor'], strict=True) if b]
            if ratios:
                cells.append(f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})')
        return f'| {title} | {" | ".join(cells)} |'

    def once(title: str, cell: Callable[[str], object]) -> str:
        return f'| {title} | {" | ".join([str(cell(side)) for side in sides] + [""] * both)} |'

    def of_config(what: str) -> str:
        # The student's config has no distillation to count.
        return once(f'{what} of config', lambda side: '' if side == 'alone' else result['config'][side][what])

    count = len(rounds[sides[0]])
    lines = [
        f'Measured on: {rounds[sides[0]][0]["machine"]}. Medians of {count} rounds of {result["steps"]} steps.',
        '',
    ]
    header = [TITLES[side] for side in sides] + ['lckd_mm / mmrazor (smallest to largest of a round)'] * both
    lines += [f'| | {" | ".join(header)} |', f'|---|{"---:|" * len(header)}']
    lines += [
        of_config('lines'),
        of_config('tokens'),
        row('step, ms', lambda f: f['step_ms']),
        row("step, processor's ms", lambda f: f['cpu_ms']),
        row('iteration with data and hooks, ms', lambda f: f['iteration_ms']),
        row("allocator's peak in a step, MiB", lambda f: f['peak_step'] / MIB),
        row('growth of the process, MiB', lambda f: f['grown'] / MIB),
        row('checkpoint, MiB', lambda f: f['file'] / MIB, 2),
        row('weights in it, MiB', lambda f: f['weights'] / MIB, 2),
        once('plain mmseg loads it strictly', lambda side: 'yes' if rounds[side][0]['plain_student'] else 'no'),
    ]
    if 'compared' in result:
        lines += ['', *compared(result)]
    return '\n'.join(lines)


def compared(result: dict) -> list[str]:
    found = result['compared']
    lines = [f'`import mmrazor.models` as it is: ``{result["unmodified"]}``', '']
    lines += ['| the same batch and weights | lckd_mm | mmrazor | relative difference |', '|---|---:|---:|---:|']
    lines += [
        f'| {name} | {found["lckd_mm"][name]:.7g} | {found["mmrazor"][name]:.7g} | {difference:.1e} |'
        for name, difference in found['losses'].items()
    ]
    lines += [
        f"| the student's gradient | | | {found['gradient']:.1e} |",
        f"| the student's weights after {found['steps']} steps | | | {found['weights']:.1e} |",
        '',
        f'Teachers equal to the bit: {"yes" if found["same_teacher"] else "no"}. KLDivergence by its default reduction '
        f'(batchmean) is {found["batchmean"]:.6g} times KDLoss. Of the labels {found["ignored"]:.1%} are ignored; '
        f'KDLoss leaves these positions out, KLDivergence does not, which is {found["ignored_kd"]:.1%} of its value '
        'here. In the table KDLoss takes all.',
        '',
        '| mistake | mmrazor | lckd_mm |',
        '|---|---|---|',
    ]
    return lines + [f'| {m["what"]} | {short(m["mmrazor"])} | {short(m["lckd_mm"])} |' for m in found['mistakes']]


def short(text: str) -> str:
    """An outcome as it is; an error shortened to its first part."""
    kind, _, message = text.partition(': ')
    if not kind.endswith('Error'):
        return text
    return f'{kind}: {textwrap.shorten(message.split("; ")[0].split(". ")[0], 160, placeholder="")} …'


if __name__ == '__main__':
    try:
        from lckd_mm.cli import run_tool
    except ImportError as error:
        sys.exit(f'error: {error}')
    sys.exit(run_tool(main))
