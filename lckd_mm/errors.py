"""What an error says, in one sentence."""


class WriteError(OSError):
    """A file could not be written; the one that stood in its place is as it was."""


def one_line(error: Exception) -> str:
    """What an error says, on one line of at most 600 letters."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = ' '.join(text.split())
    return (text if len(text) <= 600 else text[:600] + ' …') or 'no message'


def describe(error: Exception, who: str) -> str:
    """An error's sentence as it stands if it begins with ``who``, else with ``who`` and the error's kind before it."""
    text = one_line(error)
    return text if text.startswith(who) else f'{who} fails with {type(error).__name__}: {text}'


def one_sentence(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = ' '.join(text.split()) or 'no message'
    ours = (ValueError, KeyError, FileNotFoundError, FileExistsError, TypeError, ImportError, WriteError)
    return text if isinstance(error, ours) else f'{type(error).__name__}: {text} (--debug shows where)'
