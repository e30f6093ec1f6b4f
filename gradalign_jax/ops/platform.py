"""Which platform a program is traced for: the one place that asks."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_TARGET: ContextVar[str | None] = ContextVar("target", default=None)


def current() -> str:
    """Return the platform that programs are traced for: "cpu", "gpu" or "tpu"."""
    return _TARGET.get() or jax.default_backend()


def is_cpu() -> bool:
    """Whether programs are traced for a CPU, which has forms of its own for most products."""
    return current() == "cpu"


@contextmanager
def target(name: str) -> Iterator[None]:
    """Trace for another platform than the one JAX runs on: to compile for a device that is absent, or in tests.

    JAX does not know of this setting, so a function that was jitted outside is not traced again inside: make new
    functions within the context.

    Raises:
      ValueError: if `name` is not "cpu", "gpu" or "tpu".
    """
    if name not in ("cpu", "gpu", "tpu"):
        raise ValueError(f"unknown platform {name!r}: use cpu, gpu or tpu")
    token = _TARGET.set(name)
    try:
        yield
    finally:
        _TARGET.reset(token)
