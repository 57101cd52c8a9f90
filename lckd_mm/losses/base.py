"""Loss: the base class of losses."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import arguments
from ..functional.shapes import check_kind, width

_OF_BATCH = ('data_samples', 'inputs', 'replay')
_OF_ALL = (*_OF_BATCH, 'region_labels')
#: What a term passes without being asked to.
EXTRAS = (*_OF_BATCH, 'raw_student', 'raw_teacher', 'teacher_connector', 'region_labels')


class Loss(nn.Module):
    """Base class of losses, modules with ``forward(student, teacher)`` that return a scalar.

    A loss *of pairs* (the default) compares one tensor of each net. A *joint* loss, with ``joint = True``, compares
    lists of tensors. Both can be called with a tensor or with a list for each net: for a loss of pairs, ``forward``
    then runs for each pair, and the values are added up with :meth:`tensor_weights`. A term passes a list with the
    tensors of all its taps; a tap with several levels adds one for each. A tensor is a map (B, C, H, W), tokens
    (B, N, C) or a vector (B, C), whatever order of axes the host has; a loss that needs certain kinds names them in
    ``takes``.

    ``forward`` may name more arguments, which a term passes:

    * ``data_samples``: the samples of the batch, with the ground truth.
    * ``inputs``: the images (B, C, H, W), as the student sees them.
    * ``raw_student``, ``raw_teacher``: the features before the connectors.
    * ``teacher_connector``: the module that connects the teacher's feature, or None.
    * ``region_labels``: the classes (N,) of the objects in the regions, for masks under ``regions=True``.
    * ``replay``, for joint losses: a function that runs both nets on other images and returns their connected features.

    Any other argument NAME of ``forward`` is a feature that the term's ``given=dict(NAME=TAPS)`` names: the teacher's,
    as it is, one tensor per pair for a loss of pairs. ``student_NAME`` is the student's of the same taps.

    If the constructor takes ``channels``, a term gives it those of the teacher's features, one per tensor; if it takes
    ``student_channels``, those of the student's, before the connector.
    """

    #: Whether forward takes lists of tensors.
    joint = False
    #: The kinds that it takes, of 'map', 'tokens' and 'vector'; None if it needs not know the axes.
    takes: tuple[str, ...] | None = None
    #: Whether it compares class scores, which have a meaning only where both nets have the same classes.
    of_classes = False
    #: 'boxes' or 'masks' if it compares what a teacher's decoder makes of two memories: a term with ``queries=True``.
    of_queries: str | None = None
    #: Whether it finds itself which predictions (L, B, Q, C) of both nets' queries belong together.
    matches_queries = False
    #: Whether its value has an upper bound.
    bounded = False

    def __call__(self, student: Any, teacher: Any, *args: Any, **extras: Any) -> Tensor:
        single = isinstance(student, Tensor)
        student, teacher = ([x] if isinstance(x, Tensor) else list(x) for x in (student, teacher))
        if len(student) != len(teacher):
            raise ValueError(
                f"{type(self).__name__}: {len(student)} student tensors, but {len(teacher)} of the teacher's"
            )
        for x in (*student, *teacher) if self.takes else ():
            check_kind(type(self).__name__, x, self.takes)
        of_tensors = {key: [x] if single else x for key, x in extras.items() if key not in _OF_ALL}
        if self.joint:
            return super().__call__(student, teacher, *args, **extras | of_tensors)
        for key, of in of_tensors.items():
            if len(of) != len(student):
                raise ValueError(f'{type(self).__name__}: {len(of)} tensors of {key} for {len(student)} of the student')
        total: Any = 0
        for i, weight in enumerate(self.tensor_weights(len(student))):
            own = extras | {key: of[i] for key, of in of_tensors.items()}
            total = total + weight * super().__call__(student[i], teacher[i], *args, **own)
        return total

    def tensor_weights(self, count: int) -> list[float]:
        """Weights of ``count`` pairs of tensors, in order of depth; by default those of the mean."""
        return [1 / count] * count

    def forward_arguments(self) -> dict[str, bool]:
        """The arguments that forward takes beyond the two features; whether each has to be given."""
        return _arguments(self)

    def read_head(self, head: nn.Module | None) -> None:
        """Read settings from the host's head that owns the student's first tap, if there is one."""

    def read_teacher_head(self, head: nn.Module | None) -> None:
        """The same of the teacher, or of the first given tap that lies in a head; called after :meth:`read_head`."""

    def keep_classes(self, student: list[int], teacher: list[int], count: int) -> None:
        """Take note that of the student's ``count`` scores these are given, in this order, and these of the teacher."""

    def bind_student(self, layers: list[nn.Module | None], who: str) -> None:
        """Read the student's modules whose outputs are tapped, None for a tap of another tensor."""

    def bind(self, layers: list[nn.Module | None], who: str) -> None:
        """The same of the teacher; called after building, and again after the teacher is loaded."""


class PlainLoss(Loss):
    """Any module with ``forward(student, teacher)``, such as a host's L1Loss, as a loss of pairs."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.bounded = getattr(module, 'bounded', False)

    def forward_arguments(self) -> dict[str, bool]:
        return _arguments(self.module)

    def forward(self, student: Tensor, teacher: Tensor, **extras: Any) -> Tensor:
        return self.module(student, teacher, **extras)


def _arguments(module: nn.Module) -> dict[str, bool]:
    # The first two are the features, whatever their names.
    parameters = list(inspect.signature(module.forward).parameters.values())[2:]
    return {p.name: p.default is p.empty for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def check_channels(who: str, channels: Sequence[int], features: Sequence[Tensor], advice: str = '') -> None:
    """Raise ValueError, with ``advice``, unless there is one feature for each number of channels, with that many."""
    found = [width(x.shape) for x in features]
    if found != list(channels):
        raise ValueError(
            f'{who}: built for features of {list(channels)} channels, got {found}' + (f'; {advice}' if advice else '')
        )


def channel_pairs(who: str, student: Sequence[int], teacher: Sequence[int]) -> list[tuple[int, int]]:
    """Channels of each feature (student, teacher); ValueError unless there are as many features of both nets."""
    ours = arguments.integers(who, 'student_channels', student)
    theirs = arguments.integers(who, 'channels', teacher)
    if len(ours) != len(theirs):
        raise ValueError(f"{who}: {len(ours)} student tensors, but {len(theirs)} of the teacher's")
    return list(zip(ours, theirs))
