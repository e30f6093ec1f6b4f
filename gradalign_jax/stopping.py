"""What a run does when it is told to stop: save what is finished, say so, and exit with the signal's status.

SIGINT (Ctrl-C), SIGTERM, SIGUSR1 (the usual warning of a batch system before its time limit) and SIGHUP are handled
alike. While a run starts, they end it at once. Once it works, they raise `Stop`, except inside `deferred()`: there
they set a flag, which a loop reads with `requested()` where nothing is lost. Without `listen()`, as in a program that
imports the package, nothing here has an effect.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# The statuses 130 and 143 are what shells report for these signals; a warning counts as SIGTERM.
_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGHUP: 129}

_EXIT, _RAISE, _DEFER = range(3)
_answer = _EXIT
_received: signal.Signals | None = None


class Stop(KeyboardInterrupt):
    """A signal told the run to stop; not an Exception, so that nothing handles it by accident."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.name, self.status = number.name, _STATUS[number]


def listen() -> None:
    """Handle the signals from here on; one that the caller's shell ignores (nohup) stays ignored."""
    for number in _STATUS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    global _received
    again, _received = _received, signal.Signals(number)
    if _answer == _EXIT:
        os.write(2, f"\ngradalign_jax: stopped by {_received.name}\n".encode())
        os._exit(_STATUS[_received])
    if _answer == _RAISE or (again and number == signal.SIGINT):  # the second Ctrl-C does not wait
        raise Stop(_received)


def requested() -> bool:
    """Return whether a signal told the run to stop."""
    return _received is not None


def check() -> None:
    """Raise the stop that was deferred, or whose exception got lost: Python drops one raised in a finalizer.

    Raises:
      Stop: if a signal told the run to stop.
    """
    if _received is not None:
        raise Stop(_received)


@contextmanager
def raised() -> Iterator[None]:
    """Inside, a signal raises `Stop`."""
    with _answered(_RAISE):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a signal sets the flag that `requested()` returns, and raises at the end."""
    with _answered(_DEFER):
        yield
    check()


@contextmanager
def _answered(answer: int) -> Iterator[None]:
    global _answer
    before, _answer = _answer, answer
    try:
        yield
    finally:
        _answer = before
