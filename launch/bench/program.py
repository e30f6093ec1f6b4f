"""Our programs, as the bench compiles and times them, and their inputs, made without a device.

On an accelerator every operation outside a program is a small program of its own, compiled first. So inputs are drawn
by NumPy, and programs are lowered from shapes.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np

from gradalign_jax.types import Batch, Variables


class Program(NamedTuple):
    """A function to compile, and its arguments.

    Attributes:
      fn: the function.
      arguments: arrays on the host.
      carried: whether the function's first result is its next call's first argument, whose memory it may reuse.
    """

    fn: Callable
    arguments: tuple
    carried: bool = False

    def lower(self) -> jax.stages.Lowered:
        """Lower for the current platform; products are float32 outside of precision scopes, as in a run."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.arguments)
        with jax.default_matmul_precision("highest"):
            return jax.jit(self.fn, donate_argnums=(0,) if self.carried else ()).lower(*shapes)

    def start(self, compiled: jax.stages.Compiled) -> Callable[[], Any]:
        """Put the arguments on the device and return a function that makes one call and waits for its result."""
        # Copies: a CPU's buffers may share memory with NumPy's arrays, and donated ones are written to.
        first, *rest = jax.tree.map(lambda x: jax.device_put(np.array(x)), self.arguments)

        def run() -> Any:
            nonlocal first
            result = compiled(first, *rest)
            if self.carried:
                first = result[0]
            return jax.block_until_ready(result)

        return run


def ready(program: Program) -> tuple[Callable[[], Any], float]:
    """Compile a program; return a function that makes one call, and the seconds of tracing and compiling."""
    start = time.perf_counter()
    compiled = program.lower().compile()
    seconds = time.perf_counter() - start
    return program.start(compiled), seconds


def repeated(step: Callable, state: Any, arguments: tuple, steps: int) -> Program:
    """Return `steps` training steps as one program, as a training run does them.

    On a CPU the memory of temporaries returns to the system at the end of a program, and new pages are slow: a
    convolutional network's step alone in a program takes half as long again.
    """

    def many(state, *arguments):
        return jax.lax.scan(lambda state, _: step(state, *arguments), state, length=steps)

    return Program(many, (state, *arguments), carried=True)


def draw(init: Callable[[jax.Array], Variables], seed: int = 0) -> Variables:
    """Return random variables in the shapes that `init` returns, on the host."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        name = path[-1].key
        if name == "kernel":
            limit = math.prod(leaf.shape[:-1]) ** -0.5
            return rng.uniform(-limit, limit, leaf.shape).astype(np.float32)
        if name == "u":
            return rng.normal(size=leaf.shape).astype(np.float32)
        return np.full(leaf.shape, name in ("scale", "var"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, jax.eval_shape(lambda: init(jax.random.key(0))))


def zeros(fn: Callable, *arguments: Any) -> Any:
    """Return zeros on the host in the shapes of fn(*arguments), such as an optimizer's first state."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(fn, *arguments))


def on_host() -> AbstractContextManager:
    """Return a context in which operations outside of programs run on the CPU, if JAX has that backend."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return nullcontext()


def keys(count: int) -> np.ndarray:
    """Return a random key for each image, `[count, 2]`."""
    return np.random.default_rng(1).integers(2**32, size=(count, 2), dtype=np.uint32)


def batch_of(image: np.ndarray, label: np.ndarray) -> Batch:
    """Return a batch on the host, with consecutive indices."""
    return Batch(image.astype(np.float32), label.astype(np.int32), np.arange(len(label), dtype=np.int32))
