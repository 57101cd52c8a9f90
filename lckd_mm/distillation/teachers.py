"""Several teachers of one student: their configs, and which terms belong to which."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from ..config import plain_model
from ..taps import FeatureTaps
from .average import AveragedTeacher
from .dry_run import MadeUpImage, Taps, merge_taps, trace_taps
from .images import TeacherImages
from .stored import StoredTeacher
from .teacher import FrozenTeacher, teacher_net
from .term import ITSELF

#: The key of a teacher that is the student's own average.
_AVERAGE = 'average'
#: The key of where a teacher's outputs are stored.
_STORED = 'stored'
_NAMED = FileNotFoundError, ModuleNotFoundError, ImportError, KeyError, TypeError, ValueError


def without_weights(cfg: Config, teacher: Mapping[str, Any]) -> tuple[nn.Module, TeacherImages]:
    """The net of one of a config's teachers, without its weights, and the images that it sees."""
    net = plain_model(cfg) if teacher.get(_AVERAGE) else teacher_net(**teacher)[0]
    return net, TeacherImages.of(teacher)


@dataclass
class Teaching:
    """A teacher and its taps."""

    teacher: FrozenTeacher
    taps: FeatureTaps

    @classmethod
    def build(
        cls, name: str | None, config: Mapping[str, Any], student: nn.Module, taps: Taps, image: MadeUpImage
    ) -> 'Teaching':
        """Build a teacher; ``config`` may hold ``taps`` of its own beside those given for all nets."""
        config = dict(config)
        own, stored = config.pop('taps', None), config.pop(_STORED, None)
        if config.pop(_AVERAGE, False):
            teacher = AveragedTeacher(student)
        else:
            teacher = FrozenTeacher(**config) if stored is None else StoredTeacher(stored, **config)
        with DefaultScope.overwrite_default_scope(teacher.scope):
            role = 'teacher' if name is None else f'teacher {name!r}'
            return cls(teacher, merge_taps(role, teacher.model, taps, own, teacher.images.sized(image.size)))

    def trace(self, image: MadeUpImage, later: bool) -> None:
        """Run the teacher on the made-up image, see :func:`~lckd_mm.distillation.dry_run.trace_taps`."""
        size = self.teacher.images.sized(image.size)
        with DefaultScope.overwrite_default_scope(self.teacher.scope):
            trace_taps(self.taps, self.teacher.model, replace(image, size=size), later)
        self.teacher.settle(self.taps, size)


def named_teachers(
    teacher: Any, teachers: Any, terms: Mapping[str, Any], teacher_taps: Taps, inherit: Any
) -> dict[str | None, dict]:
    """Name to the config of each teacher, with its taps; of one alone the name is None.

    Raises:
        TypeError, KeyError, ValueError: neither or both are given, a config is no dict of known keys, or what needs one
        teacher is set beside several.
    """
    if isinstance(teachers, Mapping):
        teachers = {name: one for name, one in teachers.items() if one is not None} or None
    if teacher is not None and teachers is not None:
        raise TypeError('Distiller: teacher and teachers exclude each other; remove one')
    if teacher is None and teachers is None:
        if not all(isinstance(term, Mapping) and term.get('of') == ITSELF for term in terms.values()):
            raise TypeError(
                'Distiller: give teacher=dict(model=…, checkpoint=…), or teachers=dict(NAME=dict(model=…, …), …), '
                f"unless each term is of='{ITSELF}'"
            )
        for key, value in (('teacher_taps', teacher_taps), ('inherit', inherit)):
            if value:
                raise ValueError(f'Distiller: {key} belongs to a teacher, and there is none; remove it')
        return {}
    known = [*inspect.signature(FrozenTeacher).parameters, _STORED]
    if teachers is None:
        _check('teacher', teacher, known)
        return {None: {**teacher, 'taps': teacher_taps}}
    if not isinstance(teachers, Mapping) or not teachers:
        raise TypeError(f'Distiller: teachers must be a dict of name to teacher, got {teachers!r}')
    if teacher_taps is not None:
        raise ValueError('Distiller: of several teachers each has its own taps: teachers=dict(NAME=dict(taps=…, …), …)')
    if inherit:
        raise ValueError('Distiller: inherit copies the weights of one teacher; remove it, or name one teacher alone')
    for name, one in teachers.items():
        if not isinstance(name, str) or not name.isidentifier() or name == ITSELF:
            raise ValueError(
                f"Distiller: teachers: the name {name!r} must be a word, such as boxes, and not '{ITSELF}'"
            )
        _check(f'teachers.{name}', one, [*known, 'taps'])
    return dict(teachers)


def _check(who: str, config: Any, known: list[str]) -> None:
    if not isinstance(config, Mapping):
        raise TypeError(f'Distiller: {who} must be dict(model=…, checkpoint=…)')
    if _AVERAGE in config:
        if config[_AVERAGE] is not True or set(config) - {_AVERAGE} - ({'taps'} & set(known)):
            raise ValueError(
                f'{who}: {_AVERAGE}=True is the whole teacher, the average of the student, got '
                f'{", ".join(f"{key}={value!r}" for key, value in config.items())}'
            )
        return
    if not config.keys() & {'model', 'module'} or set(config) - set(known):
        raise KeyError(
            f'{who}: expected the keys {", ".join(known)}, model or module at least, got {", ".join(map(str, config))}'
        )


def of_teachers(terms: Mapping[str, Any], names: Sequence[str | None]) -> dict[str, Any]:
    """The terms of a config, each of one teacher: those of several are one of each, with their part of the weight."""
    found = {}
    for key, config in terms.items():
        of = config.get('of') if isinstance(config, Mapping) else None
        if not isinstance(of, (list, tuple)):
            found[key] = config
            continue
        if not of or not all(isinstance(name, str) for name in of) or len(set(of)) < len(of):
            raise ValueError(f'term {key!r}: of must name teachers, each once, got {of!r}')
        for name in of:
            if f'{key}_{name}' in terms:
                raise ValueError(f"term '{key}_{name}': {key!r} stands for a term of this name, too; rename one")
            found[f'{key}_{name}'] = {**config, 'of': name, 'weight': _part(config.get('weight', 1.0), len(of))}
    for key, config in found.items():
        of = config.get('of') if isinstance(config, Mapping) else None
        if of is not None and of not in (*names, ITSELF):
            known = ', '.join(repr(name) for name in names if name is not None) or 'one teacher without a name'
            raise KeyError(f"term {key!r}: of={of!r} is no teacher; there is {known}, and '{ITSELF}' itself")
    return found


def _part(weight: Any, count: int) -> Any:
    """A part of a weight, which may be a share of the loss."""
    if isinstance(weight, str):
        kind, colon, number = weight.partition(':')
        with contextlib.suppress(ValueError):
            return f'{kind}{colon}{float(number) / count:g}'
        return weight  # refused by the term
    return weight / count if isinstance(weight, (int, float)) and not isinstance(weight, bool) else weight


@contextlib.contextmanager
def named_in_errors(name: str | None) -> Iterator[None]:
    """Put the name of one of several teachers before the errors inside."""
    try:
        yield
    except _NAMED as error:
        text = str(error.args[0]) if len(error.args) == 1 else str(error)
        if name is None or f'teacher {name!r}' in text:
            raise
        kind = next(kind for kind in _NAMED if isinstance(error, kind))
        more = dict(name=error.name) if isinstance(error, ImportError) else {}
        raise kind(f'teachers.{name}: {text.removeprefix("teacher: ")}', **more) from error
