"""Time, memory and error of Lipschitz matching, compared with the authors' formulation and other equivalents.

    python tools/bench/lipschitz.py [--sets cifar imagenet fcn retinanet] [--steps 200] [--rounds 7] [--json FILE]

Every side computes the gap over all layers of a student and a teacher, forward and backward to the student's maps. The
maps are those of real networks on digit scenes, before a ReLU, at initialisation and after some training (cached in the
work_dir). The sides run alternately in one process, and medians are reported.
"""

import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler prints warnings without a GPU

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from lckd_mm.functional import transmitting_matrix, transmitting_norm, transmitting_norms  # noqa: E402

Norm = Callable[[Tensor, Tensor], Tensor]
TITLES = {
    'ours': 'lckd_mm',
    'authors10': "authors' formulation, 10 steps",
    'authors5': "authors' formulation, 5 steps",
    'matrix_norm': 'torch.linalg.matrix_norm(ord=2)',
    'mse': 'mse_loss (floor)',
}


def authors_norm(steps: int) -> Norm:
    """Power iteration on M M^T, unrolled through autograd: the formulation of the authors' code (edition C1)."""

    def norm(front: Tensor, back: Tensor) -> Tensor:
        if front.shape[2:] != back.shape[2:]:
            front = F.adaptive_avg_pool2d(front, back.shape[2:])
        a, b = front.flatten(2), back.flatten(2)
        m = a @ b.mT / a.shape[2]
        k = m @ m.mT
        v = torch.randn(k.shape[0], k.shape[1], 1, device=k.device)
        for _ in range(steps):
            v = k @ v
            v = v / v.norm(dim=1, keepdim=True)
        return (v.mT @ k @ v).flatten().sqrt()

    return norm


def svd_norm(front: Tensor, back: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(transmitting_matrix(front, back), ord=2)


def gap_of(norm: Norm, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The authors' absolute gap, layer by layer."""
    total = 0.0
    for s, t in zip(pairwise(student), pairwise(teacher), strict=True):
        with torch.no_grad():
            target = norm(*t)
        total = total + (norm(*s) - target).square().mean()
    return total


def our_gap(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    with torch.no_grad():
        target = transmitting_norms(teacher)
    return (transmitting_norms(student) - target).square().mean(1).sum()


def mse_gap(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    return sum(F.mse_loss(s, t) for s, t in zip(student, teacher, strict=True))


SIDES: dict[str, Callable[[list[Tensor], list[Tensor]], Tensor]] = {
    'ours': our_gap,
    'authors10': lambda s, t: gap_of(authors_norm(10), s, t),
    'authors5': lambda s, t: gap_of(authors_norm(5), s, t),
    'matrix_norm': lambda s, t: gap_of(svd_norm, s, t),
    'mse': mse_gap,
}


def exact_spectrum(front: Tensor, back: Tensor) -> Tensor:
    """Singular values of one sample's transmitting matrix, by svdvals in float64.

    With fewer positions than channels, those of the product of the triangular QR factors: the same values, faster.
    """
    size = tuple(map(min, front.shape[2:], back.shape[2:]))
    a, b = (F.adaptive_avg_pool2d(x.double(), size).flatten(2)[0] for x in (front, back))
    area = a.shape[1]
    if area < min(len(a), len(b)):
        a, b = torch.linalg.qr(a).R, torch.linalg.qr(b).R
    return torch.linalg.svdvals(a @ b.T / area)


def errors(student: list[Tensor], teacher: list[Tensor]) -> dict[str, float]:
    """Relative errors of the values, over samples, layers and both nets; of the gradients, for the student only."""
    norms = {'ours': transmitting_norm, 'authors10': authors_norm(10), 'authors5': authors_norm(5)}
    found: dict[str, list[Tensor]] = {name: [] for name in norms}
    gradients, ratios, values = [], [], []
    for maps, is_student in ((student, True), (teacher, False)):
        for front, back in pairwise(maps):
            leaves = [x.detach().requires_grad_(is_student) for x in (front, back)]
            ours = transmitting_norm(*leaves)
            found['ours'].append(ours.detach())
            with torch.no_grad():
                for name in ('authors10', 'authors5'):
                    found[name].append(norms[name](front, back))
            if is_student:
                ours.sum().backward()
            for i in range(len(front)):
                sample = [x[i : i + 1].detach().double().requires_grad_(is_student) for x in (front, back)]
                spectrum = exact_spectrum(*sample)
                values.append(spectrum[0].item())
                ratio = (spectrum[1] / spectrum[0]).item() if len(spectrum) > 1 else 0.0
                ratios.append(ratio)
                if is_student and ratio <= 0.95:
                    exact = torch.autograd.grad(spectrum[0], sample)
                    wrong = [x.grad[i].double() - g[0] for x, g in zip(leaves, exact)]
                    gradients.append((_norm(wrong) / _norm(exact)).item())
    exact = torch.tensor(values, dtype=torch.float64)
    out = dict(samples=len(values), ratio_median=_quantile(ratios, 0.5), ratio_99=_quantile(ratios, 0.99))
    for name, parts in found.items():
        error = (torch.cat(parts).double().cpu() - exact).abs() / exact
        out[f'value_99_{name}'], out[f'value_max_{name}'] = _quantile(error.tolist(), 0.99), error.max().item()
    out['gradients'] = len(gradients)
    out['gradient_99'], out['gradient_max'] = _quantile(gradients, 0.99), max(gradients)
    return out


def _norm(tensors) -> Tensor:
    return torch.stack([x.square().sum() for x in tensors]).sum().sqrt()


def _quantile(values: list[float], q: float) -> float:
    return torch.quantile(torch.tensor(values, dtype=torch.float64), q).item()


def measure(student: list[Tensor], teacher: list[Tensor], names: list[str], rounds: int) -> dict[str, dict]:
    """Median milliseconds and peak extra memory in MiB of each side."""
    from measure import MIB, alternate, median_ms, peak_memory

    device = student[0].device
    student = [x.detach().requires_grad_() for x in student]
    gradients = sum(x.numel() * x.element_size() for x in student)

    def step(name: str) -> Callable[[], None]:
        def run() -> None:
            for x in student:
                x.grad = None
            SIDES[name](student, teacher).backward()

        return run

    times = alternate({name: step(name) for name in names}, rounds, device)
    memory = {}
    for name in names:
        for x in student:
            x.grad = None
        # All memory of the forward pass is extra; in the backward pass, all except the gradients.
        loss, forward, held = peak_memory(lambda: SIDES[name](student, teacher), device)  # noqa: B023
        _, backward, _ = peak_memory(loss.backward, device)
        del loss
        memory[name] = max(forward, held + backward - gradients) / MIB
    medians = median_ms(times)
    return {name: dict(ms=medians[name], mib=memory[name], rounds=len(times[name])) for name in names}


def main(argv: list[str]) -> None:
    import warnings

    warnings.simplefilter('ignore')  # from the hosts' imports
    from features import SETS, feature_maps
    from measure import keep_freed_memory, machine, parser, publish

    p = parser(__doc__, rounds=7)
    p.add_argument('--sets', nargs='+', choices=SETS, default=list(SETS))
    p.add_argument('--steps', type=int, default=200, help='of training, for the trained features; 0: fresh ones only')
    p.add_argument('--skip', nargs='+', choices=SIDES, default=[], help='leave these sides out')
    p.add_argument('--work-dir', type=Path, default=Path('work_dirs/bench'))
    args = p.parse_args(argv)
    keep_freed_memory()
    device = torch.device(args.device)
    names = [name for name in SIDES if name not in args.skip]
    rows = []
    for key in args.sets:
        for state, steps in (('fresh', 0), ('trained', args.steps))[: 2 if args.steps else 1]:
            print(f'{SETS[key].title}: {state} features …', file=sys.stderr, flush=True)
            student, teacher = ([x.to(device) for x in maps] for maps in feature_maps(key, steps, args.work_dir))
            torch.manual_seed(0)
            row = dict(set=key, title=SETS[key].title, state=state, shapes=[tuple(x.shape) for x in student])
            row['errors'] = errors(student, teacher)
            row['sides'] = measure(student, teacher, names, args.rounds)
            rows.append(row)
    result = dict(machine=machine(device), steps=args.steps, rounds=args.rounds, rows=rows)
    publish(markdown(result), result, args.json)


def markdown(result: dict) -> str:
    """The tables for the docs."""
    from lckd_mm.reporting import table

    names = list(result['rows'][0]['sides'])
    tables = [f'Measured on: {result["machine"]}. Medians of {result["rounds"]} rounds.']
    for quantity, unit, digits in (('ms', 'time, ms', 1), ('mib', 'peak extra memory, MiB', 2)):
        rows = []
        for row in result['rows']:
            values = {name: row['sides'][name][quantity] for name in names}
            ratio = f'{values["ours"] / values["authors10"]:.3f}' if {'ours', 'authors10'} <= set(names) else '–'
            rows.append([row['title'], row['state'], *(f'{value:,.{digits}f}' for value in values.values()), ratio])
        head = [unit, 'features', *(TITLES[name] for name in names), 'lckd_mm / authors, 10 steps']
        tables.append(table(head, rows, '---:'))
    columns = {
        'ratio_median': 'σ₂/σ₁, median',
        'ratio_99': 'σ₂/σ₁, 99 %',
        'value_99_ours': 'σ: lckd_mm',
        'value_99_authors10': "σ: authors' 10 steps",
        'value_99_authors5': "σ: authors' 5 steps",
        'gradient_99': 'gradient: lckd_mm',
    }
    rows = []
    for row in result['rows']:
        cells = [format(row['errors'][key], '.3f' if key.startswith('ratio') else '.1e') for key in columns]
        rows.append([row['title'], row['state'], str(row['errors']['samples']), *cells])
    head = ['relative error, 99th percentile', 'features', 'samples x layers', *columns.values()]
    return '\n\n'.join([*tables, table(head, rows, '---:')])


if __name__ == '__main__':
    from lckd_mm.cli import run_tool

    sys.exit(run_tool(main))
