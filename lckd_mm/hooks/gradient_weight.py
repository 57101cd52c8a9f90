"""GradientWeightHook: keeps a term at a share of the gradient."""

from typing import Any

import torch
from mmengine.dist import all_reduce

from .. import arguments
from ..registry import HOOKS
from ..storage.checkpoint import add_state, resumed_state
from .distillation import distiller_of
from .monitors import GradientShareHook
from .schedules import LossWeightHook, epoch_length


@HOOKS.register_module()
class GradientWeightHook(GradientShareHook):
    r"""Keeps a term at a share of the gradient at one of the student's taps, by its weight, once an epoch.

    Let g be the epoch's mean of the share that :class:`GradientShareHook` logs, and p the nearest end of the band
    :math:`[\rho - \delta, \rho + \delta]`. Where g lies outside of it, the weight is multiplied by

    .. math:: \frac{p \, (1 - g)}{g \, (1 - p)}, \quad \text{at least } 0.1 \text{ and at most } 10,

    with which g would have been p. The share is the mean over all ranks. The weight that results is logged as
    ``weight_<method>``, and stored, so that a resumed run is the same.

    Args:
        term: name of the term; its weight is a number, with which it begins.
        tap: a student's tap, such as the deepest stage of the backbone. share: :math:`\rho`. band: :math:`\delta`.
        interval: of the measurement, in iterations; each costs a backward pass down to the tap for each loss.
    Raises:
        ValueError: an unknown term, one whose weight is a share of the loss, or one that a LossWeightHook schedules; a
            share that is not between ``band`` and 1 - ``band``.
    Example: ``custom_hooks = [dict(type='lckd_mm.GradientWeightHook', term='loss_cosine', tap='stage4')]``
    Source: the gradient-guided adaptive modulation of RT-DETRv4 (Liao et al., arXiv 2510.25257), with its share and
        band. Deviation: there the gradients are those of the encoder's parameters; here they are those at a tap, as the
        terms' own are measured.
    """

    def __init__(self, term: str, tap: str, share: float = 0.11, band: float = 0.01, interval: int = 50):
        super().__init__(tap, interval)
        self.term = arguments.string('GradientWeightHook', 'term', term)
        self.band = arguments.number('GradientWeightHook', 'band', band, at_least=0)
        self.share = arguments.number('GradientWeightHook', 'share', share, above=band)
        if self.share + self.band >= 1:
            raise ValueError(f'GradientWeightHook: share + band must be below 1, got {share} + {band}')
        #: The factor on the weight, and the sum and the number of this epoch's shares.
        self._state = dict(scale=1.0, sum=0.0, count=0)

    def before_train(self, runner) -> None:
        super().before_train(runner)
        terms = distiller_of(runner, 'GradientWeightHook').terms
        arguments.choice('GradientWeightHook', 'term', self.term, terms)
        if terms[self.term].running is not None:
            raise ValueError(
                f'GradientWeightHook: the weight of {self.term!r} follows from its share of the loss; give it a number'
            )
        if any(hook.term == self.term for hook in runner.hooks if isinstance(hook, LossWeightHook)):
            raise ValueError(f'GradientWeightHook: a LossWeightHook schedules {self.term!r}, too; remove one of both')
        self._epoch = epoch_length(runner)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        super().before_train_iter(runner, batch_idx, data_batch)
        term = distiller_of(runner, 'GradientWeightHook').terms[self.term]
        term.scale = self._state['scale']
        runner.message_hub.update_scalar(f'train/weight_{self.term.removeprefix("loss_")}', term.weight * term.scale)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        found = self._scalars.get(self.term.removeprefix('loss_'))
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        state = self._state
        if found is not None:
            share = torch.tensor(found, dtype=torch.float64, device=next(runner.model.parameters()).device)
            all_reduce(share, 'mean')
            state['sum'], state['count'] = state['sum'] + share.item(), state['count'] + 1
        if (runner.iter + 1) % self._epoch == 0 and state['count']:
            state['scale'] *= self.factor(state['sum'] / state['count'])
            state['sum'], state['count'] = 0.0, 0

    def factor(self, share: float) -> float:
        """What the weight is multiplied by after an epoch in which the term had this share of the gradient."""
        aim = min(max(share, self.share - self.band), self.share + self.band)
        if not 0 < share < 1:  # nothing to go by
            return 1.0
        return min(max(aim * (1 - share) / (share * (1 - aim)), 0.1), 10.0)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        add_state(checkpoint, **{f'gradient_weight.{self.term}': dict(self._state)})

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        key = f'gradient_weight.{self.term}'
        self._state = resumed_state(runner, checkpoint, key, 'GradientWeightHook') or self._state
