"""Numbers that go wrong: which term, layer and iteration a nan or infinity comes from, before weights are poisoned.

Two looks at each step. After the forward pass, :func:`check_values` looks at the value of each term. After the backward
pass, :class:`GradientWatch` tells whether the gradient that a term gives at each of its taps was finite, since the
root of 0 and the like are finite and have no finite derivative.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed
from mmengine.logging import MessageHub
from torch import Tensor, nn

from ..taps import FeatureTaps

Feature = Tensor | list[Tensor]
_ADVICE = (
    'nothing has been updated by it; to leave such steps out, set the hook '
    "default_hooks.non_finite=dict(type='lckd_mm.NonFiniteHook', action='skip')"
)
_HALF = (torch.float16, torch.bfloat16)


class NonFiniteError(ValueError):
    """A term, or the gradient of one, is nan or infinity; raised before the weights have changed, on all ranks."""


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether no tensor holds nan or infinity: a boolean scalar on their device, which is not waited for."""
    # The extremes are nan where one value is: several times faster than isfinite() on all of them.
    flags = [torch.stack(x.detach().aminmax()).isfinite().all() for x in tensors if x.numel()]
    return torch.stack(flags).all() if flags else torch.tensor(True)


def on_all_ranks(finite: Tensor) -> bool:
    """Waits for the device. Ranks agree, so that they stop, or leave a step out, together."""
    if not is_distributed():
        return bool(finite)
    flag = finite.to(torch.uint8)
    all_reduce(flag, 'min')
    return bool(flag)


def iteration() -> str:
    """The iteration under way, counted from 1 as in the log."""
    number = MessageHub.get_current_instance().get_info('iter', None)
    return 'this iteration' if number is None else f'iteration {number + 1}'


def check_values(
    values: Mapping[str, Tensor],
    explain: Callable[[str], str],
    training: bool,
) -> None:
    """Raise NonFiniteError where a term's value is nan or infinity.

    Args:
        values: name of a term to its scalar. explain: that name to where it comes from; called on failure only.
        training: whether all ranks are here.
    """
    finite = all_finite(values.values())
    if on_all_ranks(finite) if training else bool(finite):
        return
    wrong = [name for name, value in values.items() if not value.isfinite()]
    if not wrong:
        raise NonFiniteError(f'a term is nan or infinity in {iteration()} on another rank; {_ADVICE}')
    others = f' (so are {", ".join(map(repr, wrong[1:]))})' if wrong[1:] else ''
    raise NonFiniteError(
        f'term {wrong[0]!r} is {values[wrong[0]].item():g} in {iteration()}{others}: {explain(wrong[0])}; {_ADVICE}'
    )


def origin(
    term: nn.Module,
    student: tuple[FeatureTaps, Mapping[str, Feature]],
    teacher: tuple[FeatureTaps, Mapping[str, Feature]],
    connected: Mapping[str, Feature],
    inputs: Tensor,
    own: Mapping[str, Any],
) -> str:
    """Where a term's nan or infinity comes from: the images, the first tap that holds one, a connector, or itself.

    Args:
        term: the :class:`~lckd_mm.distillation.Term`. student, teacher: taps, and features by tap name.
        connected: the student's connected features, by tap name. inputs: the images. own: the student's own losses.
    """
    if not all_finite([inputs]):
        return 'the batch of images holds nan or infinity; look at the data and its pipeline'
    largest = (-1.0, '')
    for (taps, features), names in ((student, term.student_names), (teacher, term.teacher_names)):
        for name in names:
            for level in _levels(features[name]):
                where = f'{taps.role} tap {name!r} ({str(taps.addresses[name])!r})'
                if not all_finite([level]):
                    return f'{where} holds nan or infinity{_why(taps.role, level.dtype, own)}'
                size = level.detach().abs().max().item() if level.numel() else 0.0
                largest = max(largest, (size, where))
    for name, feature in connected.items():
        if not all_finite(_levels(feature)):
            return (
                f'its connector at student tap {name!r} makes nan or infinity of a finite feature; its weights have '
                'grown too large: lower the learning rate or the weight of the term'
            )
    return (
        f'its features are finite, the largest {largest[0]:.3g} at {largest[1]}, so that the nan or infinity arises in '
        f'{type(term.loss).__name__} itself'
    )


def _why(role: str, dtype: torch.dtype, own: Mapping[str, Any]) -> str:
    if dtype == torch.float16:
        return ", in float16, whose largest number is 65504; train with optim_wrapper.dtype='bfloat16', or without amp"
    if role == 'teacher':
        return '; look at its checkpoint, and at how its images are normalised'
    broken = [k for k, v in own.items() if 'loss' in k and not all_finite(_levels(v))]
    also = f' (and so is its own {broken[0]!r})' if broken else ''
    return (
        f': the student itself diverges{also}; lower its learning rate, clip its gradient, or the terms pull too hard'
    )


def _levels(feature: Any) -> list[Tensor]:
    return [x for x in (feature if isinstance(feature, (list, tuple)) else [feature]) if isinstance(x, Tensor)]


class GradientWatch:
    """Notes in the backward pass, without waiting for the device, whether each term's gradient at its taps is finite.

    A term's features go through :meth:`follow`, which gives each an alias of its own, so that the gradients of terms
    that read one tap are told apart. :meth:`check` looks at what was noted since it was last called.
    """

    def __init__(self):
        self._flags: dict[tuple[str, str], Tensor] = {}

    def follow(self, term: str, tap: str, feature: Feature) -> Feature:
        if not isinstance(feature, Tensor):
            return [self.follow(term, tap, level) for level in feature]
        if not feature.requires_grad:
            return feature
        alias = feature.view_as(feature)
        alias.register_hook(lambda gradient: self._note((term, tap), gradient))
        return alias

    def _note(self, key: tuple[str, str], gradient: Tensor) -> None:
        finite = all_finite([gradient])
        self._flags[key] = finite & self._flags[key] if key in self._flags else finite

    def forget(self) -> None:
        self._flags.clear()

    def broken(self) -> list[tuple[str, str]]:
        """(term, tap) of the gradients noted that are not finite; waits for the device."""
        return [key for key, finite in self._flags.items() if not finite]

    def check(self, terms: Mapping[str, nn.Module]) -> None:
        """Raise NonFiniteError where a gradient noted is not finite, or one of a term's own parameters, and forget."""
        own = {
            name: all_finite(p.grad for p in term.parameters() if p.grad is not None) for name, term in terms.items()
        }
        noted = [*self._flags.values(), *own.values()]
        device = next(iter(self._flags.values())).device if self._flags else torch.device('cpu')
        if on_all_ranks(torch.stack([flag.to(device, non_blocking=True) for flag in noted]).all()):
            self.forget()
            return
        broken = self.broken()
        self.forget()
        if broken:
            (term, tap), rest = broken[0], broken[1:]
            where = f'at student tap {tap!r}' + ''.join(f', {b!r} of {a!r}' for a, b in rest[:3])
        else:
            term, where = next((name for name, flag in own.items() if not flag), None), "at the term's own parameters"
            if is_distributed():
                where += ', which gradients of all ranks are in'
        if term is None:
            raise NonFiniteError(f'the gradient of a term is not finite in {iteration()} on another rank; {_ADVICE}')
        raise NonFiniteError(
            f'term {term!r} is finite in {iteration()}, but its gradient holds nan or infinity {where}: '
            f'{type(terms[term].loss).__name__} has no finite derivative there (a root or a logarithm of 0, a division '
            f'by next to nothing), or its weight is too large; {_ADVICE}'
        )
