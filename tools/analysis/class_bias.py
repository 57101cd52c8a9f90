"""Does a compressed net treat classes unequally: python tools/analysis/class_bias.py REF.pkl MODEL.pkl [MODEL.pkl …].

Compares predictions on the same samples (classes of images, or of pixels), written by
``python tools/test.py CONFIG CHECKPOINT --dump FILE.pkl`` or by mmpretrain's own test tool. Prints CEV and SDE
(Blakeney et al., arXiv 2106.07849) in both conventions, each class's error rates, the accuracies, and the number of
pruning-identified exemplars (PIE): samples whose modal predictions differ. Rates of several runs, of the model or of
the reference, are averaged first. A class with a reference rate of 0 has no relative change: it is left out of CEV and
SDE, and named.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from lckd_mm.evaluation.metrics import bias_table, left_out_sentence
from lckd_mm.evaluation.predictions import Predictions, read_predictions
from lckd_mm.functional import class_bias, confusion_matrix, modal_prediction, one_against_rest
from lckd_mm.functional.bias import CONVENTIONS


def main(argv: list[str]) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('reference', metavar='REF.pkl', help='predictions of the uncompressed net')
    p.add_argument('models', nargs='+', metavar='MODEL.pkl', help='of the compressed net, a file a run')
    p.add_argument('--reference-runs', nargs='+', default=[], metavar='REF.pkl', help='further runs of the reference')
    p.add_argument('--smoothing', type=float, default=0.0, help='pseudo-count on every count of errors and hits')
    p.add_argument('--ignore-index', type=int, default=255, help='label of the pixels that do not count')
    p.add_argument('--names', nargs='+', help='of the classes; by default their numbers')
    p.add_argument('--json', help='write the figures to this file')
    p.add_argument('--plot', metavar='FILE.png', help='draw the changes of each class')
    p.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
    args = p.parse_args(argv)
    if args.smoothing < 0:
        raise ValueError(f'--smoothing: a pseudo-count, 0 or above, got {args.smoothing}')
    references = [read_predictions(path, 'reference') for path in (args.reference, *args.reference_runs)]
    models = [read_predictions(path, 'model') for path in args.models]
    result = compare(references, models, args.smoothing, args.ignore_index, args.names)
    print(result.pop('table'))
    print()
    print(summary(result))
    if args.json:
        Path(args.json).write_text(json.dumps({k: v for k, v in result.items() if k != 'bias'}, indent=1) + '\n')
    if args.plot:
        draw(result['bias'], result['names'], Path(args.plot))


def compare(
    references: Sequence[Predictions],
    models: Sequence[Predictions],
    smoothing: float = 0.0,
    ignore_index: int = 255,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compare runs of a model with runs of a reference: both conventions, the table, accuracies in percent, PIEs."""
    first = references[0]
    for run in (*references[1:], *models):
        if run.keys() != first.keys():
            raise ValueError(f'the files are of different samples: {len(first)} in one, {len(run)} in another')
        if any(not torch.equal(run[key][0].long(), first[key][0].long()) for key in first):
            raise ValueError('the files are of different samples: they have other labels')
    truth = torch.cat([first[key][0].flatten() for key in first]).long()
    is_map = next(iter(first.values()))[0].dim() > 0
    valid = truth != ignore_index if is_map else torch.ones_like(truth, dtype=torch.bool)
    truth = truth[valid]
    before, after = (
        torch.stack([torch.cat([run[key][1].flatten() for key in first])[valid] for run in runs])
        for runs in (references, models)
    )
    classes = 1 + int(max(truth.max(), before.max(), after.max()))
    if names and len(names) < classes:
        raise ValueError(f'{len(names)} names, but there are {classes} classes')
    names = list(names or map(str, range(classes)))
    rates, accuracies = [], []
    for runs in (before, after):
        confusions = torch.stack([confusion_matrix(truth, run, len(names)) for run in runs])
        rates.append(one_against_rest(confusions, smoothing))
        hits = confusions.diagonal(dim1=1, dim2=2).sum(1).double() / len(truth)
        accuracies.append([100 * hit for hit in hits.tolist()])
    biases = {convention: class_bias(*rates, convention) for convention in CONVENTIONS}
    bias = biases['2022']
    modal = [modal_prediction(runs, len(names)) for runs in (before, after)]
    return dict(
        table=bias_table(*rates, bias, names),
        bias=bias,
        names=names,
        cev={c: b.cev for c, b in biases.items()},
        sde={c: b.sde for c, b in biases.items()},
        accuracy=accuracies[1],
        reference_accuracy=accuracies[0],
        left_out=[name for name, kept in zip(names, bias.kept) if not kept],
        left_out_sentence='' if bias.kept.all() else left_out_sentence(*rates[0], bias, names),
        pie=int((modal[0] != modal[1]).sum()),
        samples=len(truth),
        unit='pixels' if is_map else 'samples',
    )


def summary(result: dict[str, Any]) -> str:
    mean = {k: sum(result[k]) / len(result[k]) for k in ('accuracy', 'reference_accuracy')}
    lines = [
        f'accuracy: {mean["accuracy"]:.2f} % ({len(result["accuracy"])} runs), reference '
        f'{mean["reference_accuracy"]:.2f} % ({len(result["reference_accuracy"])} runs)',
        *(f'CEV {result["cev"][c]:.6g}, SDE {result["sde"][c]:.6g} (convention {c})' for c in result['cev']),
        f'PIE: {result["pie"]} of {result["samples"]} {result["unit"]}',
    ]
    return '\n'.join([*lines, *([result['left_out_sentence']] if result['left_out_sentence'] else [])])


def draw(bias: Any, names: Sequence[str], path: Path) -> None:
    """Plot each class's relative change of FPR and FNR."""
    from lckd_mm.reporting.charts import save

    def plot(figure) -> None:
        axis = figure.subplots()
        for offset, changes, label in ((-0.2, bias.fpr_change, 'FPR'), (0.2, bias.fnr_change, 'FNR')):
            axis.bar([i + offset for i in range(len(names))], (100 * changes).nan_to_num().tolist(), 0.4, label=label)
        for i in (~bias.kept).nonzero().flatten().tolist():
            axis.annotate('left out', (i, 0), rotation=90, ha='center', va='bottom', fontsize=7)
        axis.axhline(0, color='black', linewidth=0.8)
        axis.set_xticks(range(len(names)), names, rotation=90 if len(names) > 12 else 0)
        axis.set_xlabel('class')
        axis.set_ylabel('change against the reference, %')
        axis.legend()

    save(path, (max(5, 0.25 * len(names)), 3.2), plot)


if __name__ == '__main__':
    from lckd_mm.cli import run_tool

    sys.exit(run_tool(main))
