"""What errors say, the error of a file that was not written, and an end by SIGTERM that cleans up."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path


class WriteError(OSError):
    """A file could not be written; an existing file at its path is unchanged."""


#: Whether this is the repository; a wheel has neither its Makefile nor a folder tools/.
REPOSITORY = (Path(__file__).parents[1] / 'Makefile').is_file()


def tool_command(tool: str) -> str:
    """How a tool of this package, such as ``'analysis/report'``, is called here; from a wheel as a command."""
    return f'python tools/{tool}.py' if REPOSITORY else f'lckd_mm {Path(tool).name}'


#: Errors whose messages are clear without their class.
CLEAR = (ValueError, KeyError, OSError, TypeError, ImportError)


def one_line(error: BaseException) -> str:
    """An error's message on one line; unless :data:`CLEAR`, it begins with the class and is cut to 600 characters."""
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])  # str(error) has quotes around it
    elif isinstance(error, OSError) and error.strerror:
        text = f'{error.strerror}: {error.filename}' if error.filename else error.strerror
    text = ' '.join(text.split()) or 'no message'
    if isinstance(error, CLEAR):
        return text
    text = f'{type(error).__name__}: {text}'
    return text if len(text) <= 600 else text[:600] + ' …'


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM raises SystemExit(143), so that ``finally`` clauses clean up as they do for Ctrl-C.

    Does nothing outside the main thread, or if the program has its own SIGTERM handler.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(signum, frame):
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
