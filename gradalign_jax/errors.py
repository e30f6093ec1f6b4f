"""The errors that end a run with one line: the cause and the remedy."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name where it has no message."""
    return (str(error) or type(error).__name__).splitlines()[0]


class RunError(ValueError):
    """An error that keeps a run from starting or continuing."""


class DataError(ValueError):
    """A data set that cannot be used."""


class OutOfMemoryError(ValueError):
    """A program that needs more memory than the device has; the message names the key and a value that fits."""
