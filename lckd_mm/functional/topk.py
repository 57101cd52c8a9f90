"""The largest class scores alone, and scores that are made of them again."""

import math

import torch
from torch import Tensor


def top_scores(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""The ``k`` largest scores, their classes, and the mean of the other classes in exp.

    .. math:: r = \log \frac{1}{C - k} \sum_{c \notin \mathrm{top}} e^{z_c}

    Args:
        scores: logits :math:`z`, ``(B, C, ...)``, in float32 or wider. k: 1 to C - 1.
    Returns:
        The scores ``(B, k, ...)`` in descending order, their classes, integers ``(B, k, ...)``, and :math:`r`,
        ``(B, 1, ...)``.
    Raises:
        ValueError: ``k`` is not between 1 and C - 1.
    """
    count = scores.shape[1]
    if not 1 <= k < count:
        raise ValueError(f'top_scores: k must be 1 to {count - 1}, one less than the classes, got {k}')
    values, classes = scores.topk(k, dim=1)
    rest = scores.scatter(1, classes, -torch.inf).logsumexp(1, keepdim=True) - math.log(count - k)
    return values, classes, rest


def spread_scores(values: Tensor, classes: Tensor, rest: Tensor, count: int) -> Tensor:
    """Scores ``(B, count, ...)`` from :func:`top_scores`: each class that is not among the largest has ``rest``.

    At temperature 1 their softmax has the same probabilities as that of all scores for the largest, and shares what is
    left evenly between the others. At a higher temperature the others together get more than of all scores, at a lower
    one less; the ratios between the largest stay exact.
    """
    spread = rest.expand(-1, count, *rest.shape[2:])
    return spread.scatter(1, classes.long(), values)
