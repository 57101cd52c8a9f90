"""Objective: the terms between one student and one teacher; turns a batch into a loss dict."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from .finite import check_values, origin
from .side import Connected
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

    def forward(self, batch: Batch, training: bool) -> tuple[dict[str, Tensor], Connected]:
        """The weighted terms by name, and both nets' connected features by term.

        Raises:
            KeyError: a term has the name of one of the student's own losses.
            NonFiniteError: a term is nan or infinity; in training, raised on all ranks together.
        """
        done: Connected = {}
        losses = {}
        for name, term in self.items():
            if name in batch.losses:
                raise KeyError(f'term {name!r}: the student has a loss of this name; rename the term')
            losses[name] = term(batch, done)

        def explain(name: str) -> str:
            name = name.removeprefix(self.label)
            return origin(self[name], batch, done[name][0])

        check_values({self.label + name: value for name, value in losses.items()}, explain, training)
        return losses, done

    def used(self) -> tuple[list[str], list[str]]:
        """The student and teacher taps that the terms read."""
        return _unique(t.student.names for t in self.values()), _unique(t.teacher.names for t in self.values())

    @property
    def replays(self) -> bool:
        """Whether a term runs the nets again."""
        return any(term.replays for term in self.values())

    def bind(self, teacher: nn.Module) -> None:
        """Bind every term to the teacher's layers, see :meth:`~lckd_mm.distillation.Term.bind`."""
        for term in self.values():
            term.bind(teacher)


def _unique(names: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for several in names for name in several))
