"""ClassMatch: which class scores of student and teacher mean the same class."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from .. import arguments

#: A net's number of classes, and of scores per position and anchor.
Scores = tuple[int, int]
BY_NAME, BY_POSITION = 'by name', 'by position'
_ADVICE = f'match them with classes={BY_NAME!r} in the term, or, if only the words differ, classes={BY_POSITION!r}'


class ClassMatch:
    """Keeps the class scores that both nets have, in the student's order.

    Args:
        term: the name of the term.
        config: 'by name'; or a dict with the names of the ``student``'s or the ``teacher``'s classes, or of both, in
            the order of their scores, where they are not known or the other net has other words for them.
        loss: the term's loss, which is told what is kept.
    """

    def __init__(self, term: str, config: Any, loss: Any):
        self.who = f'term {term!r}: classes'
        if config != BY_NAME and not (isinstance(config, Mapping) and config and set(config) <= {'student', 'teacher'}):
            raise ValueError(
                f'{self.who} is {config!r}, expected {BY_NAME!r}, {BY_POSITION!r}, or '
                'dict(student=[names], teacher=[names])'
            )
        given = {} if config == BY_NAME else config
        self.given = {net: arguments.sequence(self.who, net, names, 'names') for net, names in given.items()}
        self.loss = loss
        #: Until the names are known, the first scores stand for those that will be kept, to try the shapes.
        self.matched = False
        self._kept: list[tuple[int, Tensor]] = []

    def prepare(self, student: Scores, teacher: Scores) -> None:
        """Learn the nets' numbers of scores; match the names if both are given in the config."""
        self.scores = dict(student=student, teacher=teacher)
        if not self.matched:
            count = min(student[1], teacher[1])
            self._keep(list(range(count)), list(range(count)))
        if len(self.given) == 2 and student[1] and teacher[1]:
            self.match(None, None)

    def match(self, student: Sequence[str] | None, teacher: Sequence[str] | None) -> None:
        """Match the classes of both nets by name. Names given in the config replace those that are handed in.

        Raises:
            ValueError: the names of a net are not known, do not fit its scores, or too few are in both nets.
        """
        if self.matched:
            return
        names = {}
        for net, known in (('student', student), ('teacher', teacher)):
            names[net] = self.given.get(net, known)
            if names[net] is None:
                where = 'its training data set' if net == 'student' else 'its checkpoint and its config'
                raise ValueError(
                    f"{self.who}: the names of the {net}'s classes are not in {where}; give them in the order of its "
                    f'scores, as in classes=dict({net}=[…])'
                )
            count, scores = len(names[net]), self.scores[net][1]
            # A detector's softmax has the background at the end.
            if scores not in (count, count + 1):
                raise ValueError(f'{self.who}: the {net} has {scores} scores, and {count} names: {_some(names[net])}')
        # A name that one net has twice, such as ImageNet's two cranes, tells nothing.
        shared = [name for name in names['student'] if all(of.count(name) == 1 for of in names.values())]
        own, theirs = ([of.index(name) for name in shared] for of in (names['student'], names['teacher']))
        if all(self.scores[net][1] > len(names[net]) for net in names):
            own.append(len(names['student']))
            theirs.append(len(names['teacher']))
        if (len(own) < 2 and getattr(self.loss, 'activation', None) != 'sigmoid') or not own:
            raise ValueError(
                f'{self.who}: {len(shared)} names are in both nets, too few to compare: the student has '
                f'{_some(names["student"])}, the teacher {_some(names["teacher"])}'
            )
        self._keep(own, theirs)
        self.matched = True
        print_log(
            f'{self.who}: compares {len(shared)} of the {len(names["student"])} classes of the student with their '
            f'namesakes of {len(names["teacher"])} of the teacher: {_some(shared)}',
            logger='current',
        )

    def _keep(self, student: list[int], teacher: list[int]) -> None:
        self._kept = [
            (self.scores[net][1], torch.tensor(of)) for net, of in (('student', student), ('teacher', teacher))
        ]
        self.loss.keep_classes(student, teacher, self.scores['student'][1])

    def kept(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Both nets' scores of the kept classes, of every anchor."""
        last = getattr(self.loss, 'matches_queries', False)
        return tuple([_picked(x, *kept, last) for x in of] for of, kept in zip((student, teacher), self._kept))


def check_names(who: str, student: Sequence[str] | None, teacher: Sequence[str] | None) -> None:
    """Raise ValueError if the names of both nets' classes are known and differ in more than their spelling."""
    if student is None or teacher is None:
        return
    for i, (own, theirs) in enumerate(zip(student, teacher)):
        if _spelt(own) != _spelt(theirs):
            raise ValueError(
                f'{who} compares class scores, and score {i} is {own!r} for the student and {theirs!r} for the '
                f'teacher; {_ADVICE}'
            )
    if len(student) != len(teacher):
        raise ValueError(
            f'{who} compares class scores, and the student has {len(student)} classes, the teacher {len(teacher)}; '
            + _ADVICE
        )


def _spelt(name: str) -> str:
    return ''.join(character for character in name.casefold() if character.isalnum())


def _picked(x: Tensor, scores: int, index: Tensor, last: bool) -> Tensor:
    axis = x.dim() - 1 if last or x.dim() == 3 else 1
    anchors = torch.arange(x.shape[axis] // scores)[:, None] * scores
    return x.index_select(axis, (anchors + index).flatten().to(x.device))


def _some(names: Sequence[str]) -> str:
    rest = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return ', '.join(names[:5]) + rest
