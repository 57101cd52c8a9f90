"""Evaluation metrics: the effect of compression on single classes; dumps of predictions."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric, DumpResults
from mmengine.logging import print_log
from torch import Tensor

from .. import arguments
from ..functional import ClassBias, class_bias, confusion_matrix, one_against_rest
from ..functional.bias import CONVENTIONS
from ..registry import METRICS
from .predictions import Predictions, predictions_of, read_predictions


@METRICS.register_module()
class ClassBiasMetric(BaseMetric):
    r"""Class bias of a net relative to the predictions of a reference: the unpruned net, or the teacher.

    Reports ``cev`` and ``sde`` of :func:`~lckd_mm.functional.class_bias`; ``accuracy`` and ``reference_accuracy`` in
    percent, because a net that is equally worse at every class has a CEV of 0; ``left_out``, the number of classes
    without a defined relative change (the log names them); and ``pie``, the number of pruning-identified exemplars:
    samples (pixels in segmentation) on which the net and the reference disagree. (For several runs, a PIE is a sample
    whose modal predictions differ: ``tools/analysis/class_bias.py``.) The log has a table with one row per class.

    For classification with one label per sample, and for segmentation, where each pixel counts as a sample and pixels
    with ``ignore_index`` are left out. Detection is refused: boxes have no true negatives, so the FPR is undefined.

    Args:
        reference: a file of predictions on the same samples (:func:`~lckd_mm.evaluation.predictions.read_predictions`),
            or 'teacher', for training with a Distiller and :class:`~lckd_mm.hooks.TeacherReferenceHook`.
        convention: '2022' or '2021', for CEV and SDE.
        smoothing: a pseudo-count added to the true and false positives and negatives of both nets; with 0, classes
            with a reference rate of 0 are left out.
        ignore_index: label of pixels to ignore in segmentation.
        base: arguments of mmengine's ``BaseMetric``.
    Raises:
        FileNotFoundError: no such file. ValueError: an unknown convention, a negative smoothing, an unsafe file, boxes,
            samples that the reference lacks.
    Example:
        test_evaluator=[
            _base_.test_evaluator, dict(type='lckd_mm.ClassBiasMetric', reference='unpruned.pkl')
        ]
    Source: Blakeney et al., arXiv 2106.07849; PIE: Hooker et al., What Do Compressed Deep Neural Networks Forget?,
        arXiv 1911.05248.
    """

    default_prefix = 'class_bias'

    def __init__(
        self, reference: str, convention: str = '2022', smoothing: float = 0.0, ignore_index: int = 255, **base: Any
    ):
        super().__init__(**base)
        self.convention = arguments.choice('ClassBiasMetric', 'convention', convention, CONVENTIONS)
        self.smoothing = arguments.number('ClassBiasMetric', 'smoothing', smoothing, at_least=0)
        self.ignore_index = ignore_index
        self.of_teacher = reference == 'teacher'
        self._reference: Predictions = {} if self.of_teacher else read_predictions(reference, 'ClassBiasMetric')

    def add_reference(self, samples: Sequence[Any]) -> None:
        """Add predictions of the reference; samples already present keep theirs."""
        for key, value in predictions_of(samples, 'ClassBiasMetric, reference').items():
            self._reference.setdefault(key, value)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            ((key, (truth, predicted)),) = predictions_of([sample], 'ClassBiasMetric').items()
            if key not in self._reference:
                way = "add custom_hooks=[dict(type='lckd_mm.TeacherReferenceHook')]; to test, give reference=FILE.pkl"
                way = way if self.of_teacher else 'the file is of another data set'
                raise ValueError(f'ClassBiasMetric: the reference has no prediction for {key!r}: {way}')
            expected, reference = self._reference[key]
            if not torch.equal(expected.long(), truth.long()):
                raise ValueError(f'ClassBiasMetric: {key!r} has another truth in the reference, a file of other data')
            # The distinct triples of labels, with their counts; ignore_index applies to maps only.
            valid = (truth != self.ignore_index) if truth.dim() else torch.ones_like(truth, dtype=torch.bool)
            triples = torch.stack([x[valid].long().flatten() for x in (truth, predicted, reference)])
            self.results.append(torch.unique(triples, dim=1, return_counts=True))

    def compute_metrics(self, results: list) -> dict[str, float]:
        names = list((self.dataset_meta or {}).get('classes') or ())
        triples, counts = (torch.cat(parts, -1) for parts in zip(*results))
        classes = len(names) or int(triples.max()) + 1
        truth, predicted, reference = triples
        ours, theirs = (confusion_matrix(truth, p, classes, counts) for p in (predicted, reference))
        rates = [one_against_rest(confusion, self.smoothing) for confusion in (theirs, ours)]
        bias = class_bias(*rates, self.convention)
        names = names or [str(i) for i in range(classes)]
        accuracy, reference_accuracy = (100 * (m.diagonal().sum() / m.sum()).item() for m in (ours, theirs))
        print_log('\n' + bias_table(*rates, bias, names), logger='current')
        if not bias.kept.all():
            print_log('ClassBiasMetric: ' + left_out_sentence(*rates[0], bias, names), 'current', logging.WARNING)
        return dict(
            cev=bias.cev,
            sde=bias.sde,
            accuracy=accuracy,
            reference_accuracy=reference_accuracy,
            left_out=float((~bias.kept).sum()),
            pie=float(counts[predicted != reference].sum()),
        )


@METRICS.register_module()
class DumpPredictions(DumpResults):
    """mmengine's ``DumpResults`` without the per-pixel scores, which would take many gigabytes.

    Example:
        test_evaluator=[
            _base_.test_evaluator, dict(type='lckd_mm.DumpPredictions', out_file_path='model.pkl')
        ]
    """

    def process(self, data_batch: Any, predictions: Sequence[dict]) -> None:
        lean = [{k: v for k, v in sample.items() if k not in ('seg_logits', 'i_seg_logits')} for sample in predictions]
        super().process(data_batch, lean)


@METRICS.register_module(name='VOCMetric')
def build_voc_metric(**config):
    """A :class:`~lckd_mm.evaluation.detection.VOCMetric` with these arguments; mmdet is imported only here."""
    from .detection import VOCMetric

    return VOCMetric(**config)


def bias_table(
    reference: tuple[Tensor, Tensor], model: tuple[Tensor, Tensor], bias: ClassBias, names: Sequence[str]
) -> str:
    """Markdown table with one row per class: reference's and model's rates in percent, and their relative change."""
    before, after = ([r if r.dim() == 1 else r.mean(0) for r in rates] for rates in (reference, model))
    lines = [
        '| class | FPR, % | of the model | change | FNR, % | of the model | change |',
        '|---|---|---|---|---|---|---|',
    ]
    for i, name in enumerate(names):
        cells = [name]
        for old, new, change in zip(before, after, (bias.fpr_change, bias.fnr_change)):
            shown = f'{change[i]:+.1%}' if bias.kept[i] else 'left out'
            cells += [f'{100 * old[i]:.3f}', f'{100 * new[i]:.3f}', shown]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def left_out_sentence(fpr: Tensor, fnr: Tensor, bias: ClassBias, names: Sequence[str]) -> str:
    """Which classes are left out of CEV and SDE, and why."""
    fpr, fnr = (rate if rate.dim() == 1 else rate.mean(0) for rate in (fpr, fnr))
    out = [i for i in range(len(names)) if not bias.kept[i]]
    absent = [names[i] for i in out if fnr[i].isnan() or fpr[i].isnan()]
    zero = [names[i] for i in out if names[i] not in absent]
    parts = [f'{len(zero)} whose reference makes no error of one kind ({", ".join(zero)})'] if zero else []
    parts += [f'{len(absent)} without samples ({", ".join(absent)})'] if absent else []
    return f'{len(out)} of {len(names)} classes are left out of CEV and SDE: ' + '; '.join(parts)
