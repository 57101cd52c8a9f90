"""Checks the terms' values and finds the term, layer and iteration that a nan or infinity comes from.

Gradients are checked by :class:`~lckd_mm.hooks.NonFiniteHook`.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from mmengine.dist import all_reduce
from mmengine.logging import MessageHub
from torch import Tensor

from .side import Feature, levels
from .term import Batch, Term

ADVICE = (
    'nothing has been updated by it; to leave such steps out, set the hook '
    "default_hooks.non_finite=dict(type='lckd_mm.NonFiniteHook', action='skip')"
)


class NonFiniteError(ValueError):
    """A term or its gradient is nan or infinity; raised on all ranks before the weights change."""


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether all tensors are finite: a boolean scalar on their device, computed without synchronising."""
    # aminmax() gives nan if any value is nan; it is several times faster than isfinite() on every value.
    flags = [torch.stack(x.detach().aminmax()).isfinite().all() for x in tensors if x.numel()]
    return torch.stack(flags).all() if flags else torch.tensor(True)


def on_all_ranks(finite: Tensor) -> bool:
    """Whether the flag is true on all ranks, so that they stop or skip a step together. Synchronises the device."""
    flag = finite.to(torch.uint8)
    all_reduce(flag, 'min')
    return bool(flag)


def iteration() -> str:
    """The current iteration, counted from 1 as in the log."""
    number = MessageHub.get_current_instance().get_info('iter', None)
    return 'this iteration' if number is None else f'iteration {number + 1}'


def check_values(values: Mapping[str, Tensor], explain: Callable[[str], str], training: bool) -> None:
    """Raise NonFiniteError if a term's value is nan or infinity.

    Args:
        values: term name to scalar.
        explain: gives the cause for a term's name; called only on failure.
        training: whether all ranks make this call, so that they can agree.
    """
    finite = all_finite(values.values())
    if on_all_ranks(finite) if training else bool(finite):
        return
    wrong = [name for name, value in values.items() if not value.isfinite()]
    if not wrong:
        raise NonFiniteError(f'a term is nan or infinity in {iteration()} on another rank; {ADVICE}')
    raise NonFiniteError(
        f'term {wrong[0]!r} is {values[wrong[0]].item():g} in {iteration()}: {explain(wrong[0])}; {ADVICE}'
    )


def origin(term: Term, batch: Batch, connected: Mapping[str, Feature]) -> str:
    """Where a term's nan or infinity comes from: the images, the first tap that holds one, a connector, or the loss.

    Args:
        connected: the student's connected features, by tap name.
    """
    if not all_finite([batch.inputs]):
        return 'the batch of images holds nan or infinity; check the data and its pipeline'
    largest = (-1.0, '')
    for side, features in ((term.student, batch.student), (term.teacher, batch.teacher)):
        for name in side.names:
            where = f'{side.taps.role} tap {name!r} ({str(side.taps.addresses[name])!r})'
            for tensor in levels(features[name]):
                if not all_finite([tensor]):
                    return f'{where} holds nan or infinity{_why(side.taps.role, tensor.dtype)}'
                if tensor.numel():
                    largest = max(largest, (tensor.detach().abs().max().item(), where))
    for name, feature in connected.items():
        if not all_finite(levels(feature)):
            return (
                f'its connector at student tap {name!r} turns a finite feature into nan or infinity; lower the '
                'learning rate or the weight of the term'
            )
    return (
        f'its features are finite, the largest {largest[0]:.3g} at {largest[1]}, so the cause is in {term.loss_name} '
        'itself'
    )


def _why(role: str, dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        # The teacher's own precision, where it has one, comes before that of the training.
        way = "train with optim_wrapper.dtype='bfloat16', or without amp"
        way = "give it precision='bf16'" if role.startswith('teacher') else way
        return f', in float16, whose largest number is 65504; {way}'
    if role.startswith('teacher'):
        return '; check its checkpoint, and how its images are normalised'
    return ': the student itself diverges; lower its learning rate or the weights of the terms, or clip its gradient'
