"""Signals that stop a run: it saves what is finished, says so, and exits with the signal's status.

SIGINT (Ctrl-C), SIGTERM, SIGUSR1 (the usual warning of a batch system before its time limit) and SIGHUP are handled
alike. While a run starts, they end it at once. Later they raise `Stop`, except inside `deferred()`: there they set a
flag, which a loop reads with `requested()` where it can stop without loss. Without `listen()`, as in a program that
imports the package, nothing here has an effect.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# The statuses 130 and 143 are what shells report for these signals; a warning counts as SIGTERM.
_STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGHUP: 129}

# Functions whose exceptions Python drops: finalizers, and what JAX calls at each garbage collection.
_DROPPING = ("__del__", "_xla_gc_callback")

_EXIT, _RAISE, _DEFER = range(3)
_answer = _EXIT
_received: signal.Signals | None = None


class Stop(KeyboardInterrupt):
    """A signal to stop the run; not an Exception, so that nothing handles it by accident."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.name, self.status = number.name, _STATUS[number]


def listen() -> None:
    """Handle the signals from here on; one that the shell ignores (nohup) stays ignored."""
    for number in _STATUS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    signal.signal(signal.SIGALRM, _handle_later)


def _handle(number: int, frame: FrameType | None) -> None:
    global _received
    again, _received = _received, signal.Signals(number)
    if _answer == _EXIT:
        os.write(2, f"\ngradalign_jax: stopped by {_received.name}\n".encode())
        os._exit(_STATUS[_received])
    if _answer == _RAISE or (again and number == signal.SIGINT):  # the second Ctrl-C does not wait
        _raise(frame)


def _handle_later(number: int, frame: FrameType | None) -> None:
    if _answer == _RAISE:
        _raise(frame)


def _raise(frame: FrameType | None) -> None:
    """Raise the stop; a moment later where Python would print and drop the exception."""
    while frame is not None:
        if frame.f_code.co_name in _DROPPING:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return
        frame = frame.f_back
    raise Stop(_received)


def requested() -> bool:
    """Return whether a signal to stop the run has arrived."""
    return _received is not None


def request() -> None:
    """Set the flag as SIGTERM would, where another process of the run has received a signal."""
    global _received
    _received = _received or signal.SIGTERM


def check() -> None:
    """Raise a stop that was deferred, or lost: Python drops an exception raised in a weakref callback.

    Raises:
      Stop: if a signal to stop the run has arrived.
    """
    if _received is not None:
        raise Stop(_received)


@contextmanager
def raised() -> Iterator[None]:
    """Make signals raise `Stop` in the context.

    Raises:
      Stop: when a signal arrives.
    """
    with _answered(_RAISE):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """Make signals in the context set the flag that `requested()` returns, and raise `Stop` at its end.

    Raises:
      Stop: at the end, if a signal arrived; at once on the second Ctrl-C.
    """
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
