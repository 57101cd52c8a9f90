"""Class bias of a compressed net: one-against-rest error rates, and how unequally they change."""

from typing import NamedTuple

import torch
from torch import Tensor

CONVENTIONS = ('2022', '2021')


class ClassBias(NamedTuple):
    """Result of :func:`class_bias`: two scores, and the relative change of each rate per class."""

    cev: float
    sde: float
    fpr_change: Tensor
    fnr_change: Tensor
    kept: Tensor


def confusion_matrix(truth: Tensor, predicted: Tensor, classes: int, counts: Tensor | None = None) -> Tensor:
    """Confusion matrix.

    Args:
        truth, predicted: class indices of equal shape, 0 to ``classes - 1``.
        counts: int64, number of samples per pair of indices; None means one.
    Returns:
        ``(C, C)`` int64, one row per true class, one column per predicted class.
    Raises:
        ValueError: an index outside the classes.
    """
    truth, predicted = truth.flatten().long(), predicted.flatten().long()
    for name, values in (('truth', truth), ('prediction', predicted)):
        if values.numel() and not (values.min() >= 0 and values.max() < classes):
            raise ValueError(
                f'confusion matrix: a {name} is class {int(values.max())} or {int(values.min())}, outside the '
                f'{classes} classes'
            )
    counts = torch.ones_like(truth) if counts is None else counts.flatten()
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    return confusion.index_put_((truth, predicted), counts, accumulate=True)


def one_against_rest(confusion: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    r"""False-positive and false-negative rate of each class against all others.

    .. math:: \mathrm{FPR}_c = \frac{FP_c + s}{FP_c + TN_c + 2 s}, \qquad
              \mathrm{FNR}_c = \frac{FN_c + s}{FN_c + TP_c + 2 s}

    Args:
        confusion: ``(C, C)`` or ``(R, C, C)``, counts, one row per true class.
        smoothing: s, a pseudo-count; 0 gives the plain rates.
    Returns:
        Two float64 tensors ``(C,)`` or ``(R, C)``, as fractions; nan where a class does not occur (FNR), or where
        no other class does (FPR), smoothed or not.
    """
    counts = confusion.double()
    hit = counts.diagonal(dim1=-2, dim2=-1)
    positives, claimed, total = counts.sum(-1), counts.sum(-2), counts.sum((-2, -1), keepdim=True).squeeze(-1)
    negatives = total - positives
    fpr = (claimed - hit + smoothing) / (negatives + 2 * smoothing)
    fnr = (positives - hit + smoothing) / (positives + 2 * smoothing)
    return torch.where(negatives > 0, fpr, torch.nan), torch.where(positives > 0, fnr, torch.nan)


def class_bias(reference: tuple[Tensor, Tensor], model: tuple[Tensor, Tensor], convention: str = '2022') -> ClassBias:
    r"""Combined error variance (CEV) and symmetric distance error (SDE) of a model against a reference.

    With the relative changes :math:`a_c = (\mathrm{FPR}^m_c - \mathrm{FPR}^o_c) / \mathrm{FPR}^o_c`, and
    :math:`b_c` likewise for the FNR, over the C classes that have both:

    * ``2022``: :math:`\mathrm{CEV} = \frac 1 C \sum_c (a_c - \bar a)^2 + (b_c - \bar b)^2`,
      :math:`\mathrm{SDE} = \frac 1 C \sum_c |a_c - b_c|`.
    * ``2021``, with a and b in percent: half of that CEV, and that SDE over :math:`\sqrt 2`, so that
      :math:`\mathrm{CEV}_{2021} = 5000\,\mathrm{CEV}_{2022}` and
      :math:`\mathrm{SDE}_{2021} = 100 / \sqrt 2 \; \mathrm{SDE}_{2022}`.

    Both are 0 if every class changes equally, however much worse it gets: they complement the accuracy and never
    replace it. They are not symmetric in model and reference.

    Args:
        reference: (FPR, FNR) from :func:`one_against_rest` for the uncompressed net. model: for the compressed net.
            Rates are ``(C,)``, or ``(R, C)`` for several runs, which are averaged over the runs first.
        convention: '2022' or '2021'.
    Returns:
        :class:`ClassBias`; the changes are fractions in both conventions. Classes with a reference rate of 0 or without
        samples are left out: their changes are nan and ``kept`` is False. Both scores are nan if no class is left.
    Source: Blakeney et al., Simon Says: Evaluating and Mitigating Bias in Pruned Neural Networks with Knowledge
        Distillation, arXiv 2106.07849 (2021, and the forms of 2022). Deviation: classes with a reference rate of 0 are
        left out, since a small number in place of the 0 would dominate the result.
    """
    before = [rate.double() if rate.dim() == 1 else rate.double().mean(0) for rate in reference]
    after = [rate.double() if rate.dim() == 1 else rate.double().mean(0) for rate in model]
    changes = torch.stack([(m - o) / torch.where(o > 0, o, torch.nan) for o, m in zip(before, after)])
    kept = changes.isfinite().all(0)
    changes = torch.where(kept, changes, torch.nan)
    a, b = changes[:, kept]
    cev = ((a - a.mean()).square() + (b - b.mean()).square()).mean()
    sde = (a - b).abs().mean()
    if convention == '2021':
        cev, sde = 5000 * cev, 100 / 2**0.5 * sde
    return ClassBias(cev.item(), sde.item(), *changes, kept)


def modal_prediction(predictions: Tensor, classes: int) -> Tensor:
    """Majority vote of several runs for each sample; ties go to the smallest class index.

    Args:
        predictions: ``(R, ...)``, class indices, one row per run.
    Returns:
        ``(...)``, int64.
    """
    modal = torch.zeros(predictions.shape[1:], dtype=torch.int64)
    most = torch.zeros(predictions.shape[1:], dtype=torch.int64)
    for index in range(classes):
        votes = (predictions == index).sum(0)
        modal = torch.where(votes > most, index, modal)
        most = torch.maximum(votes, most)
    return modal
