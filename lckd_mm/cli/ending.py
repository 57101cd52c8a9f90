"""The last lines of a training: its score and the commands that follow, or, where it is interrupted, how to go on."""

import contextlib
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_distributed, is_main_process
from mmengine.runner import Runner
from torch import nn

from ..config import size_in_tests
from ..contexts import eval_mode, preserved_rng
from ..hooks.distillation import best_or_last
from ..hosts import WholePrediction, image_channels, unwrapped
from ..storage.export import PlainForward
from ..storage.files import last_checkpoint, near


def command(tool: str) -> str:
    """How a tool of this package is called, such as ``'analysis/report'``: as the one that runs was."""
    script = Path(sys.argv[0])
    if script.name != 'train.py' or '.mim' in script.parts:
        return f'lckd_mm {Path(tool).name}'
    python = 'python' if shutil.which('python') == sys.executable else near(sys.executable)
    return shlex.join([python, near(script.parent / f'{tool}.py')])


def results(runner: Runner, config: str, argv: Sequence[str], since: float) -> str:
    """The best or last score, and the commands to test, report and export what was trained.

    Args:
        config: the file that was trained. argv: the command line, for its ``--cfg-options``. since: when it was begun.
    """
    lines = [_scores(runner)]
    student = Path(runner.work_dir, 'student.pth')
    chosen = str(student) if _newer(student, since) else best_or_last(runner)
    if chosen is not None:
        given = [near(config), near(chosen)]
        options = [*option_values(argv, '--cfg-options')]
        options = ['--cfg-options', *options] if options else []
        if runner.cfg.get('test_dataloader') is not None:
            lines.append(f'{command("test")} {shlex.join([*given, *options])}')
        lines.append(f'{command("analysis/report")} {shlex.join([near(runner.work_dir)])}')
        if (flags := _export_flags(unwrapped(runner.model), runner.cfg)) is not None:
            out = near(Path(runner.work_dir, 'student.onnx'))
            lines.append(f'{command("export")} {shlex.join([*given, out, *flags, *options])}')
    return '\n    '.join(lines)


def _export_flags(model: nn.Module, cfg: Any) -> list[str] | None:
    """The options with which the export works on an image of the size that it takes; None if the net needs more."""
    net, parameter, flags = getattr(model, 'student', model), next(model.parameters()), None
    for kind, found in ((PlainForward, []), (WholePrediction, ['--end-to-end'])):
        try:
            with preserved_rng(), eval_mode(model):
                forward = kind(net) if found else kind(net, image_channels(net))
                forward(parameter.new_zeros(1, forward.channels, *size_in_tests(cfg, net)))
        except Exception:  # a host may raise anything
            return flags
        flags = found
    return flags


def _newer(file: Path, since: float) -> bool:
    return file.is_file() and file.stat().st_mtime >= since


def _scores(runner: Runner) -> str:
    hub, found = runner.message_hub, []
    keys = [key for hook in runner.hooks for key in getattr(hook, 'key_indicators', None) or ()]
    for key in keys:
        suffix = f'_{key}' if len(keys) > 1 else ''
        if f'best_score{suffix}' in hub.runtime_info:
            score, file = (hub.get_info(f'best_{what}{suffix}') for what in ('score', 'ckpt'))
            found.append(f'best {key} {score:.4f} ({near(file)})')
    if not found:
        scalars = {name: buffer.current() for name, buffer in hub.log_scalars.items() if name.startswith('val/')}
        found = [f'{k.removeprefix("val/")} {v:.4f}' for k, v in scalars.items() if not k.endswith('time')]
        found = [f'last validation: {", ".join(found)}'] if found else ['no validation gave a score']
    return f'finished, {", ".join(found)}'


def option_values(argv: Sequence[str], flag: str) -> Iterator[str]:
    """The values that a command line gives to an option that takes several."""
    inside = False
    for word in argv:
        if word.startswith('--'):
            name, single, value = word.partition('=')
            inside = name == flag and not single
            if name == flag and single:
                yield value
        elif inside:
            yield word


def way_on(runner: Runner, argv: Sequence[str], since: float) -> str:
    """Where a training that was begun at the time ``since`` stands, and the command that continues it."""
    # An earlier training may have left one, too.
    saved = _newer(Path(runner.work_dir, 'last_checkpoint'), since) and last_checkpoint(runner.work_dir)
    words, skipped = [], False
    for word in argv:
        # Its value, if it has one, is the next word.
        skipped = word == '--resume' or (skipped and not word.startswith('-'))
        words += [] if skipped or word.startswith('--resume=') else [word]
    # Without one of its own it begins again where it began, also from a checkpoint.
    words = [*words, '--resume'] if saved else argv
    new = 'new ' if runner._resume else ''
    state = f'the last checkpoint is {near(saved)}' if saved else f'it has saved no {new}checkpoint'
    if any(word.startswith('--launcher') for word in words):
        return f'{state}; start it again{" with --resume" if saved else ""}'
    return f'{state}; {"go on" if saved else "begin again"} with: {command("train")} {shlex.join(words)}'


@contextlib.contextmanager
def interruptible(runner: Runner, argv: Sequence[str]) -> Iterator[float]:
    """Ctrl-C and SIGTERM inside end with one line that says how to go on; the process ends as it does without.

    Gives the time at which it begins. With several ranks SIGTERM ends each at once, without the line: Python's handlers
    run between its instructions, and a rank may be waiting for one that has ended.

    Raises:
        KeyboardInterrupt: Ctrl-C, with that line; with an empty one in all ranks but the first.
    """
    since, handled = time.time(), False

    def leave(signum: int, frame: Any) -> None:
        signal.signal(signum, signal.SIG_DFL)
        try:
            # Not print(): the signal may have interrupted another call of it, which holds its lock.
            os.write(2, f'terminated; {way_on(runner, argv, since)}\n'.encode())
        finally:
            os.kill(os.getpid(), signum)

    def handle(handler: Any) -> None:
        if handled and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)

    # Python forgets a signal that comes before a forked process runs: pools of processes, which end theirs by SIGTERM,
    # would wait for it for ever. So that no such process has the handler, it is away while one is made.
    os.register_at_fork(before=lambda: handle(signal.SIG_DFL), after_in_parent=lambda: handle(leave))
    main = threading.current_thread() is threading.main_thread() and not is_distributed()
    handled = main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    handle(leave)
    try:
        yield since
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'interrupted; {way_on(runner, argv, since)}' if is_main_process() else '') from None
    finally:
        handle(signal.SIG_DFL)
        handled = False  # what is registered cannot be taken back, and does nothing from here on
