"""The errors that end a run with one line: the cause and the remedy."""


class RunError(ValueError):
    """A run cannot start or continue."""


class DataError(ValueError):
    """A data set cannot be used."""


class OutOfMemoryError(ValueError):
    """A program that needs more memory than the device has; the message names the key and a value that fits."""
