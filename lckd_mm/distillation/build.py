"""Builds an objective from the configs of its terms."""

import difflib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..connectors import Chain
from ..taps import FeatureTaps, Pass
from .objective import Objective
from .term import ITSELF, Term

#: The traced taps of student and teacher.
Both = tuple[FeatureTaps, FeatureTaps]


def build_objective(
    configs: Mapping[str, Any], taps: Both | Mapping[str | None, Both], net: nn.Module, label: str = ''
) -> Objective:
    """An :class:`Objective` from the terms' configs, the traced taps of student and teacher (of several teachers, by
    name), and the student net."""
    taps = taps if isinstance(taps, Mapping) else {None: taps}
    terms: dict[str, Term] = {}
    for name, config in lenders_first(configs).items():
        of = teacher_of(name, config, {key: both[1] for key, both in taps.items() if key != ITSELF})
        if of is not None and isinstance(config, Mapping):
            config = {**config, 'of': of}
        if of not in list(taps):
            raise KeyError(f'term {name!r}: of={of!r} is no teacher here; remove of')
        terms[name] = build_term(name, config, taps[of], net, {n: t for n, t in terms.items() if t.of == of})
    return Objective(terms, label)


def teacher_of(name: Any, config: Any, taps: Mapping[str | None, FeatureTaps]) -> str | None:
    """The name of a term's teacher: as it says, or the only one that has its taps."""
    of = config.get('of') if isinstance(config, Mapping) else None
    if of is not None or len(taps) == 1 or not isinstance(config, Mapping):
        return next(iter(taps), ITSELF) if of is None else of
    if not taps:
        raise ValueError(f"term {name!r}: there is no teacher; write of='{ITSELF}', or give the Distiller a teacher")
    read = config.get('teacher') or config.get('on') or []
    read = [read] if isinstance(read, str) else list(read)
    able = [key for key, own in taps.items() if read and set(read) <= set(own.addresses)]
    if len(able) != 1:
        owners = (
            f'are those of {", ".join(map(repr, able))}' if able else f'are of none of {", ".join(map(repr, taps))}'
        )
        raise ValueError(f'term {name!r}: the taps {read} {owners}; name its teacher, as in of={next(iter(taps))!r}')
    return able[0]


def build_term(
    name: Any, config: Any, taps: tuple[FeatureTaps, FeatureTaps], net: nn.Module, before: Mapping[str, Term]
) -> Term:
    """A :class:`Term` from its config; KeyError for an unknown key, with the closest one."""
    if not isinstance(name, str) or not re.fullmatch(r'loss_[^.\s]+', name):
        raise ValueError(
            f"term {name!r}: its name must start with 'loss_', since only such keys are trained, and have no dots or "
            'spaces, since it names a module'
        )
    if not isinstance(config, Mapping):
        raise ValueError(f'term {name!r}: expected a dict(loss=…, on=…, weight=…), got {config!r}')
    known = [p.name for p in inspect.signature(Term).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key in config:
        if key not in known:
            closest = ''.join(f'; did you mean {k!r}?' for k in difflib.get_close_matches(str(key), known, 1))
            raise KeyError(f'term {name!r}: unknown key {key!r}, expected {", ".join(known)}{closest}')
    if 'loss' not in config:
        raise KeyError(f"term {name!r}: no loss, expected loss=dict(type='lckd_mm.LipschitzLoss') or the like")
    term = Term(name, taps, net, before, **config)
    for side in (term.student, term.teacher):
        if term.replays and side.lender:
            raise ValueError(
                f'term {name!r}: {term.loss_name} runs the nets again, so it cannot borrow the {side.key} of '
                f'{side.lender!r}; give it its own'
            )
    if term.of == ITSELF:
        _check_itself(term)
    if term.unlabelled:
        _check_unlabelled(term, before)
    for key, value in (('regions', term.regions), ('queries', term.queries)) if term.replays else ():
        if value:
            raise ValueError(f'term {name!r}: {term.loss_name} runs the nets again, so it takes no {key}=True')
    if term.replays and term.part is not None:
        raise ValueError(f'term {name!r}: {term.loss_name} runs the nets again, so it cannot reuse {term.part!r}')
    for connector in term.teacher_connectors:
        # A connector with online=True is trained only by a loss that reads it.
        if connector.online and 'teacher_connector' not in term.extras:
            raise ValueError(
                f'term {name!r}: a {type(connector).__name__} with online=True is trained by a term of its own, with '
                "loss=dict(type='lckd_mm.ReconstructionLoss'); put it there, and name that term here as "
                'teacher_connector'
            )
    return term


def _needs_teacher(term: Term) -> list[str]:
    """What a term has that only a teacher on labelled images gives."""
    parts = dict(reuse=term.part, regions=term.regions, queries=term.queries or None)
    parts |= {term.loss_name: term.loss} if term.replays else {}
    return [key for key, value in parts.items() if value is not None]


def check_untrained(term: Term) -> None:
    """Raise ValueError for connectors that read the layers of a teacher that is not trained yet."""
    for connector in term.teacher_connectors:
        for one in connector if isinstance(connector, Chain) else [connector]:
            if one.of_teacher:
                raise ValueError(
                    f'term {term.name!r}: its teacher is the student or its average, and {type(one).__name__} needs a '
                    'trained teacher; remove it'
                )


def check_stored(term: Term) -> None:
    """Raise ValueError for what a term of a teacher whose outputs are stored cannot have."""
    who = f'term {term.name!r}: its teacher has stored outputs'
    for key in _needs_teacher(term):
        raise ValueError(f'{who}, and {key} runs the teacher; remove stored from the teacher, or {key} from the term')
    if term.loss.matches_queries:
        raise ValueError(
            f'{who}, whose rows are images, and predictions of queries have layers there; remove stored from it'
        )
    if term.unlabelled:
        raise ValueError(f"{who}, which are those of labelled images; remove stored, or images='unlabelled'")


def _check_itself(term: Term) -> None:
    """Raise ValueError for what a term of the student with itself cannot have."""
    check_untrained(term)
    parts = _needs_teacher(term) + ['classes'] * (term.match is not None)
    if parts:
        raise ValueError(
            f"term {term.name!r}: of='{ITSELF}' compares the student with itself, and {parts[0]} needs a teacher"
        )
    if term.student.names == term.teacher.names and not len(term.student.connectors) + len(term.teacher_connectors):
        raise ValueError(
            f"term {term.name!r}: of='{ITSELF}' compares {', '.join(term.student.names)} with itself, which is always "
            'equal; name other taps with student= and teacher='
        )


def _check_unlabelled(term: Term, before: Mapping[str, Term]) -> None:
    """Raise ValueError for what a term on images without labels cannot have."""
    for key in _needs_teacher(term):
        raise ValueError(f"term {term.name!r}: images='unlabelled' compares features alone; remove {key}")
    for side in (term.student, term.teacher, *term.given.values()):
        late = [n for n in side.names if n in side.taps.traces and Pass() not in side.taps.traces[n].passes]
        if late:
            raise ValueError(
                f'term {term.name!r}: {side.taps.role} tap {late[0]!r} fires only with the loss, which images without '
                'labels lack; tap a layer that runs in a plain forward'
            )
        if side.lender and not before[side.lender].unlabelled:
            raise ValueError(
                f"term {term.name!r}: images='unlabelled' cannot borrow the {side.key} of {side.lender!r}, which sees "
                'labelled images; give it its own'
            )


def lenders_first(configs: Mapping[str, Any]) -> dict[str, Any]:
    """The terms' configs in their order, but each after those whose connectors it borrows.

    The order alone is not reliable: mmengine sorts the config that it writes into each work_dir by name.
    """
    ordered: dict[str, Any] = {}

    def add(name: str, waiting: tuple[str, ...]) -> None:
        config = configs[name]
        for key in ('connector', 'teacher_connector'):
            lender = config.get(key) if isinstance(config, Mapping) else None
            if isinstance(lender, str) and lender in configs and lender not in (*waiting, name):
                add(lender, (*waiting, name))
        ordered.setdefault(name, config)

    for name in configs:
        add(name, ())
    return ordered


def inherited(terms: Any, who: str) -> dict[str, Any]:
    """The terms of a config, without those that a derived config has set to None."""
    terms = {n: c for n, c in terms.items() if c is not None} if isinstance(terms, Mapping) else None
    if not terms:
        raise ValueError(
            f'{who}: terms must be a dict of name to term, with at least one; see lckd_mm.distillation.Term'
        )
    return terms
