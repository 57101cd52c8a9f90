"""Finds a teacher's config and checkpoint from what a user names: either of them, or both."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hub import get_config

from ..config import is_distillation, student_config
from ..errors import one_line
from ..hosts import load_config
from ..storage.files import read_checkpoint

_ENDINGS = ('.pth', '.pt', '.ckpt', '.bin')


@dataclass
class Source:
    """A teacher: its config, by path or as ``'mmdet::…'``, and its checkpoint, by path or URL."""

    model: str
    checkpoint: str
    #: A config that was found in the checkpoint and has no file yet; ``model`` is the name it gets.
    text: str | None = None


def find_teacher(names: list[str]) -> Source:
    """The teacher that one or two names stand for.

    Args:
        names: a checkpoint, which holds its config, or has one beside it; a config and a checkpoint; or a host's
            config, such as ``'mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py'``, whose published weights its index names.
    Raises:
        FileNotFoundError: there is no such file. ValueError: the names are neither, or the config or the checkpoint
            that belongs to one is not found.
    """
    checkpoints = [name for name in names if name.endswith(_ENDINGS) or ('://' in name and '::' not in name)]
    configs = [name for name in names if name not in checkpoints]
    if len(checkpoints) > 1 or len(configs) > 1 or not names:
        raise ValueError(f'--teacher: expected a config, a checkpoint, or one of each, got {" ".join(names)!r}')
    for name in (*checkpoints, *configs):
        if '://' not in name and '::' not in name and not Path(name).is_file():
            raise FileNotFoundError(f'--teacher: no file {name!r}')
    if not checkpoints:
        return Source(configs[0], _published(configs[0]))
    if configs:
        return Source(configs[0], checkpoints[0])
    return _of_checkpoint(checkpoints[0])


def _published(config: str) -> str:
    """The address of a host's published weights."""
    if '::' not in config:
        raise ValueError(f'--teacher: {config!r} has no weights; name both: --teacher {config} CHECKPOINT')
    load_config(config, '--teacher')  # for the sentence where there is no such file or package
    try:
        return get_config(config, pretrained=True).model_path
    except Exception:  # mmengine raises what its index happens to lack
        raise ValueError(
            f"--teacher: the host's index has no weights of {config!r}; name a checkpoint too: --teacher {config} "
            'CHECKPOINT'
        ) from None


def _of_checkpoint(checkpoint: str) -> Source:
    """The config in a checkpoint's meta, or the only one beside it."""
    meta = read_checkpoint(checkpoint, '--teacher').get('meta')
    # Not 'config', which older hosts wrote: their configs have other keys.
    if isinstance(meta, dict) and (stored := meta.get('cfg')):
        return Source('teacher.py', checkpoint, _plain(stored, checkpoint))
    beside = [] if '://' in checkpoint else [p for p in sorted(Path(checkpoint).parent.glob('*.py')) if _is_config(p)]
    if len(beside) == 1:
        cfg = load_config(str(beside[0]), '--teacher')
        return Source(str(beside[0]), checkpoint) if not is_distillation(cfg) else _student_of(cfg, checkpoint)
    found = f'{len(beside)} beside it' if beside else 'none beside it'
    raise ValueError(
        f'--teacher: {checkpoint!r} holds no config, and there is {found}; name both: --teacher CONFIG {checkpoint}'
    )


def _is_config(path: Path) -> bool:
    """Whether a file defines a model; it is not run."""
    try:
        body = ast.parse(path.read_text()).body
    except (SyntaxError, ValueError, OSError):
        return False
    names = {
        node.targets[0].id for node in body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return 'model' in names or '_base_' in names


#: What the text of a config consists of that mmengine wrote.
_VALUES = (ast.Module, ast.Assign, ast.Name, ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.UnaryOp, ast.USub)


def _check_is_data(text: str) -> None:
    """Raise ValueError unless a config's text is values alone: what comes in a checkpoint must not run."""
    for node in ast.walk(ast.parse(text)):
        is_dict = isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict' and not node.args
        if not (is_dict or isinstance(node, (*_VALUES, ast.keyword, ast.expr_context))):
            raise ValueError(f'line {getattr(node, "lineno", 1)} is more than a value')


def _plain(stored: Any, checkpoint: str) -> str:
    """The text of a stored config, as mmengine writes it; of a distillation, the student's."""
    try:
        if isinstance(stored, str):
            _check_is_data(stored)
        cfg = Config.fromstring(stored, '.py') if isinstance(stored, str) else Config(dict(stored))
        return (student_config(cfg) if is_distillation(cfg) else cfg).pretty_text
    except Exception as error:
        raise ValueError(
            f'--teacher: the config in {checkpoint!r} cannot be read ({one_line(error)}); name one: --teacher CONFIG '
            f'{checkpoint}'
        ) from error


def _student_of(cfg: Config, checkpoint: str) -> Source:
    return Source('teacher.py', checkpoint, student_config(cfg).pretty_text)
