"""GradientWatch: checks that each term's gradient at its taps is finite."""

from collections.abc import Mapping
from functools import partial

import torch
from mmengine.dist import is_distributed
from torch import Tensor

from ..distillation import NonFiniteError, Term
from ..distillation.finite import ADVICE, all_finite, iteration, on_all_ranks
from ..distillation.side import Feature


class GradientWatch:
    """Records in the backward pass, without synchronising, whether each term's gradient at its taps is finite.

    A finite term can have a non-finite gradient, as the square root does at 0. After :meth:`attach`, each term reads
    its own alias of a feature, so that the gradients of terms that read one tap stay distinct.
    """

    def __init__(self):
        self._flags: dict[tuple[str, str], Tensor] = {}

    def attach(self, terms: Mapping[str, Term]) -> None:
        for name, term in terms.items():
            term.student.follow = partial(self.follow, name)

    @staticmethod
    def detach(terms: Mapping[str, Term]) -> None:
        for term in terms.values():
            term.student.follow = None

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
        """(term, tap) of every recorded non-finite gradient; synchronises the device."""
        return [key for key, finite in self._flags.items() if not finite]

    def check(self, terms: Mapping[str, Term]) -> None:
        """Raise NonFiniteError if a recorded gradient, or one of a term's own parameters, is not finite; then reset."""
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
            term, where = broken[0][0], f'student tap {broken[0][1]!r}'
        else:
            term, where = next((name for name, flag in own.items() if not flag), None), "the term's own parameters"
            if is_distributed():
                where += ', whose gradient is the sum over all ranks'
        if term is None:
            raise NonFiniteError(f'the gradient of a term is not finite in {iteration()} on another rank; {ADVICE}')
        raise NonFiniteError(
            f'term {term!r} is finite in {iteration()}, but its gradient holds nan or infinity at {where}: the '
            f'derivative of {type(terms[term].loss).__name__} is not finite there (a root or logarithm of 0, a '
            f'division by a tiny number), or its weight is too large; {ADVICE}'
        )
