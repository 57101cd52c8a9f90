"""Error messages in one sentence."""


class WriteError(OSError):
    """A file could not be written; an existing file at its path is unchanged."""


def one_line(error: Exception) -> str:
    """An error's message on one line, cut to 600 characters."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = ' '.join(text.split())
    return (text if len(text) <= 600 else text[:600] + ' …') or 'no message'


def describe(error: Exception, who: str) -> str:
    """An error's message, prefixed with ``who`` and the error's class unless it already starts with ``who``."""
    text = one_line(error)
    return text if text.startswith(who) else f'{who} fails with {type(error).__name__}: {text}'


def one_sentence(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = ' '.join(text.split()) or 'no message'
    ours = (ValueError, KeyError, FileNotFoundError, FileExistsError, TypeError, ImportError, WriteError)
    return text if isinstance(error, ours) else f'{type(error).__name__}: {text} (--debug shows where)'
