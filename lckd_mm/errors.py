"""An error's message on one line, and the error of a file that could not be written."""


class WriteError(OSError):
    """A file could not be written; an existing file at its path is unchanged."""


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
