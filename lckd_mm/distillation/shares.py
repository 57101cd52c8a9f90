"""Weights that give a term a chosen share of the loss."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

#: Batches that the running means look back on, and those after which a weight that is set at the start stays.
HORIZON = 100
START = 20


def parse_share(who: str, weight: Any) -> 'RunningShare | None':
    """What a weight such as ``'start:0.5'`` or ``'share:0.3'`` asks for; None if the weight is not a string."""
    if not isinstance(weight, str):
        return None
    kind, _, number = weight.partition(':')
    try:
        share = float(number) if kind in ('start', 'share') else 0
    except ValueError:
        share = 0
    if not 0 < share < 1:
        raise ValueError(
            f"{who}: weight must be a number, or a share of the loss between 0 and 1, at the start, as in 'start:0.5', "
            f"or all the time, as in 'share:0.3', got {weight!r}"
        )
    return RunningShare(share, kind == 'start')


class RunningShare(nn.Module):
    """The running means of a term and of all losses that no share regulates; stored with the connectors.

    Args:
        share: the term's share of the loss. at_start: only over the first 20 batches; then the weight stays as it is.
    """

    def __init__(self, share: float, at_start: bool = False):
        super().__init__()
        self.share, self.at_start = share, at_start
        self.register_buffer('means', torch.zeros(2, dtype=torch.float64))
        self.register_buffer('seen', torch.zeros((), dtype=torch.int64))

    @property
    def settled(self) -> bool:
        """Whether further batches do not change the weight."""
        return self.at_start and int(self.seen) >= START


@torch.no_grad()
def share_weights(
    running: Mapping[str, RunningShare], values: Mapping[str, Tensor], others: Tensor | float, training: bool
) -> dict[str, Tensor]:
    r"""The weights that keep each term i at the share :math:`p_i` of the loss, on average.

    .. math:: w_i = \frac{p_i}{1 - \sum_j p_j} \; \frac{\bar O}{\bar \ell_i}

    where :math:`\bar\ell_i` is the running mean of the term's absolute value and :math:`\bar O` that of the sum of all
    other losses: the student's own, and the terms with a number as weight. The mean is that of all batches so far, from
    the 100th on an exponential one with a rate of 1/100; for a share at the start, that of the first 20. All ranks have
    the same weights.

    Args:
        running: term name to its running means. values: term name to its unweighted value in this batch.
        others: the sum of the other losses. training: whether the means take in this batch, on all ranks together.
    """
    left = 1 - sum(of.share for of in running.values())
    weights = {}
    for name, of in running.items():
        value = values[name].detach().abs()
        now = torch.stack([value, torch.as_tensor(others).to(value).abs()]).to(of.means)
        if training:
            all_reduce(now, 'mean')
        # A batch that is not finite is left out: other checks decide what becomes of it.
        counts = now.isfinite().all()
        if of.at_start:
            counts = counts & (of.seen < START)
        seen = of.seen + counts
        means = torch.where(counts, of.means + (now - of.means) / seen.clamp(1, HORIZON), of.means)
        if training:
            of.means.copy_(means)
            of.seen.copy_(seen)
        weight = of.share / left * means[1] / means[0]
        weights[name] = torch.where(means[0] > 0, weight, 0).to(value.dtype)
    return weights


def sum_of(losses: Mapping[str, Any]) -> Tensor | float:
    """The sum of a loss dict, as the hosts' ``parse_losses`` adds it up."""
    tensors = [x for name, of in losses.items() if 'loss' in name for x in (of if isinstance(of, list) else [of])]
    return sum(x.mean() for x in tensors if isinstance(x, Tensor))
