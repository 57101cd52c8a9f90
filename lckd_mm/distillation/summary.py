"""What is distilled, as a block for the log: the nets, their taps and the terms, with the shapes of the first batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from ..connectors import Chain
from ..taps import FeatureTaps
from .distiller import Distiller
from .objective import Objective
from .online import OnlineDistiller
from .side import Feature, Side, levels
from .term import ITSELF, Batch, Key, Term

_INDENT = '\n    '


@dataclass
class Seen:
    """The shapes in the first batch that an :class:`Objective` computed; empty before."""

    images: tuple[int, ...] = ()
    student: dict[str, str] = field(default_factory=dict)
    teachers: dict[Key, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def by(cls, model: nn.Module) -> 'Seen':
        """Filled by the first objective in ``model`` when it runs; hooks stay on the objective, so take a copy."""
        seen, first = cls(), next(m for m in model.modules() if isinstance(m, Objective))

        def note(_: nn.Module, given: tuple) -> None:
            batch: Batch = given[0]
            seen.images = tuple(batch.inputs.shape)
            seen.student = _sizes(batch.student)
            seen.teachers = {key: _sizes(one.teacher) for key, one in batch.each().items()}

        first.register_forward_pre_hook(note)
        return seen


def summary(model: Distiller | OnlineDistiller, seen: Seen) -> str:
    """A block of about five lines and one a term.

    A term's line names its loss, weight and connectors, and each pair of taps with the shapes of one image's features,
    the student's before the teacher's.
    """
    if isinstance(model, OnlineDistiller):
        (k, j), objective = model.pairs[0], next(iter(model.terms.values()))
        rows = [(f'net {i}', _net(net)) for i, net in enumerate(model.nets)]
        head, taps = 'online distillation, each net from the one before it', {None: model.net_taps[j]}
        own = model.net_taps[k]
    else:
        objective, own, taps = model.terms, model.student_taps, {n: one.taps for n, one in model.teachers.items()}
        rows, head = _nets(model), 'distillation'
    read = {name: [objective.used(name, unlabelled) for unlabelled in (False, True)] for name in taps or [None]}
    names = {name: [[*dict.fromkeys(one[i] + other[i])] for i in (0, 1)] for name, (one, other) in read.items()}
    itself = [tap for unlabelled in (False, True) for tap in objective.used(ITSELF, unlabelled)[1]]
    tapped = [(own.role, _addresses(own, [*dict.fromkeys(next(iter(names.values()))[0] + itself)]))]
    tapped += [(of.role, _addresses(of, names[name][1])) for name, of in taps.items()]
    if len({addresses for _, addresses in tapped}) == 1:
        rows.append(('taps', tapped[0][1]))
    else:
        rows += [(f'taps of {"the " * (role in ("student", "teacher"))}{role}', text) for role, text in tapped]
    rows += [(name, _term(term, seen)) for name, term in objective.items()]
    if seen.images:
        count, channels, *size = seen.images
        head += f'; the first batch has {count} images of {" x ".join(map(str, size))}'
        roles = own.role, next(iter(taps.values())).role if len(taps) == 1 else 'teacher'
        head += f' with {channels} channels' * (channels != 3) + f'; shapes are {" | ".join(roles)}'
    return head + ''.join(f'{_INDENT}{name}: {text}' for name, text in rows)


def _nets(model: Distiller) -> list[tuple[str, str]]:
    student, taught = _net(model.student), list(model.teachers.values())
    if len(taught) == 1:
        part = _count(model.student) / max(_count(taught[0].teacher.model), 1)
        student += f", {100 * part:.3g} % of the teacher's"
    teachers = [(of.taps.role, f'{_net(of.teacher.model)}, {of.teacher.origin}') for of in taught]
    return [('student', student), *teachers]


def _net(net: nn.Module) -> str:
    return f'{type(net).__name__}, {_count(net):,} parameters'


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _addresses(taps: FeatureTaps, names: list[str]) -> str:
    return ', '.join(f'{name}={str(taps.resolved.get(name, taps.addresses[name]))!r}' for name in names)


def _sizes(features: Mapping[str, Feature]) -> dict[str, str]:
    """The shape of one image's feature by tap; of a tap that gives several, the first and their number."""
    sizes = {}
    for name, feature in features.items():
        shapes = ['x'.join(map(str, x.shape[1:])) for x in levels(feature)]
        sizes[name] = shapes[0] + (f' (first of {len(shapes)})' if len(shapes) > 1 else '')
    return sizes


def _term(term: Term, seen: Seen) -> str:
    parts = [term.loss_name, f'weight {_weight(term)}']
    connectors = {side.role: text for side in (term.student, term.teacher) if (text := _connectors(side))}
    if len(set(connectors.values())) == 1 and term.student.lender == term.teacher.lender is not None:
        parts += set(connectors.values())
    else:
        parts += [f"{text} on the {role}'s side" for role, text in connectors.items()]
    if term.part is not None:
        compared = ', '.join(term.teacher.names)
        parts.append(
            f"the teacher's {term.part} runs from these taps on the student's features, compared at {compared}"
        )
    if term.queries:
        parts.append("the teacher's decoder and head judge both by the teacher's queries")
    if term.of is not None:
        parts.append(f'of {term.of}')
    if term.unlabelled:
        parts.append('on unlabelled images')
    given = {f'{key}={name}': None for key, side in term.given.items() for name in side.names}
    if given:
        parts.append(f'given {" ".join(given)}')
    pairs = []
    for own, other in zip(term.student.names, term.into.names):
        sizes = ' '.join([own, *filter(None, [seen.student.get(own)])])
        taught = seen.teachers.get(term.key, {})
        other = ' '.join(filter(None, [other if other != own else '', taught.get(other)]))
        pairs.append(' | '.join(filter(None, [sizes, other])))
    return f'{", ".join(parts)}: {", ".join(pairs)}'


def _weight(term: Term) -> str:
    """As the config has it, with the factor that a schedule gives it now."""
    if term.running is not None:
        return f'{"start" if term.running.at_start else "share"}:{term.running.share:g}'
    return f'{term.weight:g}' + (f' x {term.scale:g} at the start' if term.scale != 1 else '')


def _connectors(side: Side) -> str:
    if side.lender is not None:
        return f'connectors of {side.lender}'
    chains = [list(made) if isinstance(made, Chain) else [made] for made in side.connectors]
    kinds = dict.fromkeys(' + '.join(type(one).__name__ for one in chain) for chain in chains)
    return ', '.join(kinds)
