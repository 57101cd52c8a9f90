"""Objective: the terms between one student and one teacher; turns a batch into a loss dict."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..connectors import Chain
from ..errors import one_line
from ..taps import TapError
from .finite import NonFiniteError, check_values, origin
from .regions import RegionHead
from .shares import share_weights, sum_of
from .side import Connected, levels
from .term import Batch, Term


class Objective(nn.ModuleDict):
    """Name to :class:`~lckd_mm.distillation.Term`, ordered so that a term comes after those it borrows from.

    Args:
        terms: name to term.
        label: prefix of a term's name in error messages, such as ``net0.``.
    """

    def __init__(self, terms: Mapping[str, Term], label: str = ''):
        super().__init__(terms)
        self.label = label
        shares = {name: term.running.share for name, term in terms.items() if term.running is not None}
        if (asked := sum(shares.values())) >= 1:
            names = ', '.join(map(repr, shares))
            raise ValueError(f"{names} ask for {asked:g} of the loss in all; leave some to the student's own losses")

    def forward(self, batch: Batch, training: bool) -> tuple[dict[str, Tensor], Connected]:
        """The weighted terms by name, and both nets' connected features by term.

        Raises:
            KeyError: a term has the name of one of the student's own losses.
            ValueError: a term does not take its features.
            NonFiniteError: a term is nan or infinity; in training, raised on all ranks together.
        """
        self._check_names(batch.losses)
        done: Connected = {}
        losses = {}
        for name in self:
            if batch.of(self[name]) is None:
                losses[name] = _zero(self[name], batch.inputs.device)
                continue
            value = self.value(name, batch, done)
            # A weight that follows from the share is not known yet.
            losses[name] = value if self[name].running is not None else self[name].weight * self[name].scale * value

        def explain(name: str) -> str:
            name = name.removeprefix(self.label)
            return origin(self[name], batch.of(self[name]), done[name][0])

        check_values({self.label + name: value for name, value in losses.items()}, explain, training)
        return losses | self._balanced(losses, batch.losses, training), done

    def _check_names(self, own: Mapping[str, Any]) -> None:
        for name in self:
            if name in own:
                raise KeyError(f'term {name!r}: the student has a loss of this name; rename the term')

    def _balanced(self, losses: Mapping[str, Tensor], own: Mapping[str, Any], training: bool) -> dict[str, Tensor]:
        """The terms that are kept at a share of the loss, with the weights of this batch."""
        running = {name: term.running for name, term in self.items() if term.running is not None}
        if not running:
            return {}
        fixed = {name: value for name, value in losses.items() if name not in running}
        balanced = {}
        for name, weight in share_weights(running, losses, sum_of(own | fixed), training).items():
            self[name].weight = weight
            balanced[name] = weight * self[name].scale * losses[name]
        return balanced

    def value(self, name: str, batch: Batch, done: Connected) -> Tensor:
        """One term without its weight, as :meth:`~lckd_mm.distillation.Term.compare`.

        Raises:
            ValueError: it does not take its features, whose shapes are named, or does not give a scalar.
        """
        term = self[name]
        batch = batch.of(term)
        try:
            value = term.compare(batch, done)
        except (NonFiniteError, TapError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a loss or connector may raise anything on features that do not fit
            shapes = '; '.join(
                f'{side.role} ' + ', '.join(f'{n} {tuple(levels(features[n])[0].shape)}' for n in side.names)
                for side, features in ((term.student, batch.student), (term.teacher, batch.teacher))
            )
            own = [type(one).__name__ for of in term.connectors[:1] for one in (of if isinstance(of, Chain) else [of])]
            beside = f' (after {" and ".join(own)}, in a list)' if own and 'connector=' in str(error) else ''
            raise ValueError(
                f'term {name!r}: {term.loss_name} does not take these features ({shapes}): {one_line(error)}{beside}'
            ) from error
        if not isinstance(value, Tensor) or value.dim() != 0:
            given = tuple(value.shape) if isinstance(value, Tensor) else f'a {type(value).__name__}'
            raise ValueError(f'term {name!r}: {term.loss_name} must return a scalar tensor, not {given}')
        return value

    def taught(self, of: str | None, unlabelled: bool = False) -> list[Term]:
        """The terms of a teacher, on the labelled images or on the others; None is the only teacher."""
        return [term for term in self.values() if term.key == (of, unlabelled)]

    def used(self, of: str | None = None, unlabelled: bool = False) -> tuple[list[str], list[str]]:
        """On these images: the student's taps that all terms read, and the taps of a teacher that its terms do."""
        student = _unique(term.reads()[0] for term in self.values() if term.unlabelled is unlabelled)
        return student, _unique(term.reads()[1] for term in self.taught(of, unlabelled))

    @property
    def idle(self) -> bool:
        """Whether no term needs a teacher in this batch; the same on all ranks."""
        return all(term.idle for term in self.values())

    def zeros(self, own: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
        """What idle terms add to the loss: 0, with a gradient of 0 for each of their parameters, which DDP expects.

        Args:
            own: the student's own losses.
        Raises:
            KeyError: as :meth:`forward`.
        """
        self._check_names(own)
        return {name: _zero(term, device) for name, term in self.items()}

    @property
    def replays(self) -> bool:
        """Whether a term runs the nets again."""
        return any(term.replays for term in self.values())

    def parts(self, of: str | None = None) -> set[str]:
        """The paths of a teacher's parts that run again, on features, on regions or on a memory of the student's."""
        parts = {term.part for term in self.taught(of) if term.part is not None}
        parts |= {term.their_regions.extractor for term in self.taught(of) if term.their_regions is not None}
        return parts.union(*(term.judge.paths for term in self.taught(of) if term.judge is not None))

    def judged(self, of: str | None = None) -> tuple[str, str] | None:
        """A tap of a teacher's memory, and the path of its head, to which its pass has to go on; None: no judge."""
        return next(((term.teacher.names[0], term.judge.head) for term in self.taught(of) if term.judge), None)

    def region_heads(self) -> set[RegionHead]:
        """The student's heads whose regions the teacher's heads score, too."""
        return {term.regions for term in self.values() if term.regions is not None}

    def bind(self, teacher: nn.Module, of: str | None = None) -> None:
        """Bind the terms of a teacher to its layers, see :meth:`~lckd_mm.distillation.Term.bind`."""
        for term in self.values():
            if term.of == of:
                term.bind(teacher)


def _zero(term: Term, device: torch.device) -> Tensor:
    return sum((0 * p.sum() for p in term.parameters() if p.requires_grad), torch.zeros((), device=device))


def _unique(names: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for several in names for name in several))
