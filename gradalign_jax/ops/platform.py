"""The platform that a program is traced for; no other module asks JAX."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_TARGET: ContextVar[str | None] = ContextVar("target", default=None)


def current() -> str:
    """Return the platform that programs are traced for: "cpu", "gpu" or "tpu"."""
    return _TARGET.get() or jax.default_backend()


def is_cpu() -> bool:
    """Return whether programs are traced for a CPU, where most products have special forms."""
    return current() == "cpu"


@contextmanager
def target(name: str) -> Iterator[None]:
    """Trace for another platform than the one JAX runs on: to compile for an absent device, or in tests.

    JAX's caches ignore this setting, so a function that was jitted outside is not traced again inside: make new
    functions within the context.

    Args:
      name: "cpu", "gpu" or "tpu".

    Raises:
      ValueError: if `name` is another.
    """
    if name not in ("cpu", "gpu", "tpu"):
        raise ValueError(f"unknown platform {name!r}: use cpu, gpu or tpu")
    token = _TARGET.set(name)
    try:
        yield
    finally:
        _TARGET.reset(token)
