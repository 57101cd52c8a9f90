"""Writes the config of a distillation, from a student's config and a teacher."""

import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch import nn

from .. import __version__
from ..config import add_hooks, input_size, is_distillation, plain_model, student_model
from ..distillation.teacher import FrozenTeacher
from ..hosts import build_model, config_class_names, host_of, load_config, run_once, training_size
from ..storage.files import install, near, write_whole
from .choose import Chosen, Pair, choose
from .teacher import Source, find_teacher
from .unlabelled import unlabelled_hook


def distillation_config(
    student: str,
    teacher: str | Sequence[str],
    recipe: str = 'auto',
    work_dir: str | None = None,
    unlabelled: str | None = None,
    **overrides: Any,
) -> Config:
    """The config of a distillation with its hooks, ready for ``Runner.from_cfg``; its file lies in ``work_dir``.

    Args:
        student: a config that trains alone: a file, or a host's, such as ``'mmdet::retinanet/….py'``.
        teacher: a checkpoint, a host's config with published weights, or a config and a checkpoint.
        recipe: 'auto', 'kd', 'features', 'london' or 'lipschitz'.
        work_dir: by default ``work_dirs/<student>_<recipe>``.
        unlabelled: a folder of images without labels, on which both nets are compared, too.
        overrides: values of the config, such as ``train_cfg=dict(max_iters=100)``.
    Raises:
        FileNotFoundError, ValueError, TypeError: see :func:`start`.
    """
    install()
    cfg = load_config(start(student, teacher, recipe, work_dir, unlabelled))
    cfg.merge_from_dict(overrides)
    cfg.work_dir = work_dir or default_work_dir(student, recipe)
    add_hooks(cfg)
    return cfg


def default_work_dir(student: str, recipe: str) -> str:
    """``work_dirs/<student>_<recipe>``."""
    return str(Path('work_dirs') / f'{Path(student.rpartition("::")[2]).stem}_{recipe}')


def start(
    student: str,
    teacher: str | Sequence[str],
    recipe: str = 'auto',
    work_dir: str | None = None,
    unlabelled: str | None = None,
) -> str:
    """Write the config of a distillation into ``work_dir/recipe``, and return its path.

    Both nets are built and run once on a made-up image, and the teacher is loaded strictly, before anything is written.

    Raises:
        FileNotFoundError: there is no such config or checkpoint. ValueError: the config distils already, the teacher's
            config or weights are not found or do not fit, or the nets do not have what the recipe needs.
    """
    cfg = load_config(student, 'student')
    if not isinstance(cfg.get('model'), dict):
        raise KeyError(f'student: the config {student!r} defines no `model`')
    if is_distillation(cfg):
        raise ValueError(f'student: {student!r} is a distillation already; name a config that trains alone')
    source = find_teacher([teacher] if isinstance(teacher, str) else list(teacher))
    scope = cfg.get('default_scope') or 'mmengine'
    with DefaultScope.overwrite_default_scope(scope), tempfile.TemporaryDirectory() as kept:
        net, model = plain_model(cfg), source.model
        size = _size(cfg, net)
        if source.text is not None:
            model = f'{kept}/teacher.py'
            Path(model).write_text(source.text)
        frozen = FrozenTeacher(model, source.checkpoint)
        if host_of(frozen.model) != host_of(net):
            raise ValueError(
                f'teacher: {type(frozen.model).__name__} is a model of {host_of(frozen.model)} and the student, '
                f'{type(net).__name__}, of {host_of(net)}; name a teacher of the same task'
            )
        frozen.load()
        pair = Pair(net, frozen.model, (config_class_names(student), frozen.classes), size)
        chosen, hook = choose(recipe, pair, unlabelled is not None), None
        lazy = Config._is_lazy_import(cfg.filename)
        if unlabelled is not None:
            hook, left = unlabelled_hook(Config.fromstring(cfg.pretty_text, '.py') if lazy else cfg, unlabelled)
            chosen.notes += left
        # Built once, so that what does not fit is refused before anything is written.
        built = dict(model=model, checkpoint=source.checkpoint)
        build_model(
            dict(
                type='lckd_mm.Distiller',
                student=student_model(cfg),
                teacher=built,
                taps=chosen.taps,
                terms=chosen.terms,
                dry_run_size=size,
            ),
            scope,
        )
    folder = Path(work_dir or default_work_dir(student, recipe)).absolute() / 'recipe'
    files = {}
    if source.text is not None:
        source.model = str(folder / f'teacher_{recipe}.py')
        files[source.model] = source.text
    base = student if '::' in student else str(Path(student).absolute())
    if lazy:
        # A text config cannot inherit from one in pure Python.
        base = str(folder / f'student_{recipe}.py')
        files[base] = cfg.pretty_text
    path = folder / f'{Path(student.rpartition("::")[2]).stem}_{recipe}.py'
    files[str(path)] = written(base, source, chosen, size, hook, bool(cfg.get('custom_hooks')))
    for name, text in files.items():
        if Path(name).exists() and Path(name).read_text() != text:
            raise ValueError(
                f'{name} exists, and differs from what the recipe writes; train it as it is (tools/train.py {path}), '
                'or remove it, or name another --work-dir'
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_whole(name, text.encode())
    print_log(said(chosen, path), logger='current')
    return str(path)


def _size(cfg: Config, net: nn.Module) -> tuple[int, int] | None:
    """The size of the dry run's image: None, the default, if the net runs on that, else the size of its training."""
    try:
        run_once(net, training_size(net), 'tensor')
    except Exception:  # a host may raise anything
        size = input_size(cfg, net)
        return size if size != training_size(net) else None
    return None


def written(
    base: str,
    source: Source,
    chosen: Chosen,
    size: tuple[int, int] | None,
    hook: dict | None = None,
    beside: bool = False,
) -> str:
    """The text of the distillation config; ``hook`` is added, ``beside`` the student's own if it has some."""
    checkpoint = source.checkpoint if '://' in source.checkpoint else str(Path(source.checkpoint).absolute())
    model = source.model if '::' in source.model else str(Path(source.model).absolute())
    terms = []
    for name, term in chosen.terms.items():
        terms += [f'        # {line}' for line in textwrap.wrap(chosen.reasons[name], 108)]
        terms.append(f'        {name}={literal(term, 8, 110 - len(name))},')
    return '\n'.join(
        [
            f"# The student's config, distilled by the recipe {chosen.recipe!r} of lckd_mm {__version__}: train this",
            '# file with tools/train.py, edit it, or inherit from it.',
            f'_base_ = [{base!r}]',
            '',
            'model = dict(',
            '    _delete_=True,',
            "    type='lckd_mm.Distiller',",
            '    student=_base_.model,',
            f'    teacher=dict(model={model!r}, checkpoint={checkpoint!r}),',
            f'    taps={chosen.taps!r},',
            *([f'    dry_run_size={size!r},  # it does not run on images of the default size'] if size else []),
            '    terms=dict(',
            *terms,
            '    ),',
            ')',
            *([f'custom_hooks = {"[*_base_.custom_hooks, " if beside else "["}{literal(hook, 0)}]'] if hook else []),
            '',
        ]
    )


def literal(value: Any, indent: int, limit: int = 110) -> str:
    """A value as Python text: on one line if that is short enough, else an entry a line."""
    if isinstance(value, list):
        line = f'[{", ".join(literal(v, 0, 1000) for v in value)}]'
        rows = [f'{" " * (indent + 4)}{literal(v, indent + 4, limit)},' for v in value]
        fits = indent + len(line) <= limit or not any(isinstance(v, dict) for v in value)
        return line if fits else '\n'.join(['[', *rows, f'{" " * indent}]'])
    if not isinstance(value, dict):
        return repr(value)
    line = f'dict({", ".join(f"{k}={literal(v, 0, 1000)}" for k, v in value.items())})'
    if indent + len(line) <= limit:
        return line
    rows = [f'{" " * (indent + 4)}{k}={literal(v, indent + 4, limit)},' for k, v in value.items()]
    return '\n'.join(['dict(', *rows, f'{" " * indent})'])


def said(chosen: Chosen, path: Path) -> str:
    """Why each term was chosen, for the log; the nets, weights and taps are in what training logs, and in the file."""
    reasons = [f'{name}: {chosen.reasons[name]}' for name in chosen.terms]
    lines = [f'recipe {chosen.recipe!r}, written to {near(path)}: train it, edit it, or inherit from it']
    return '\n    '.join([*lines, *reasons, *chosen.notes])
