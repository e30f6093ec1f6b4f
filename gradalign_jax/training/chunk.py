"""Many training steps as one program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradalign_jax.types import Array, Batch, Step


def make_chunk(
    step: Step,
    source: Callable[[Any, Array], Callable[[Array, Array, Array], Batch]],
    length: int,
    batch_size: int,
    share: Callable[[Array], Array] = lambda rows: rows,
) -> Callable:
    """Build `chunk(state, data, key, inputs) -> (state, metrics [length])`: `length` steps as one program.

    Random keys depend only on `key`, the number of the step and the place in the batch, so a resumed run equals an
    uninterrupted one.

    Args:
      step: a training step, as `make_step` builds it.
      source: (data, first step) -> at, called once for each chunk. at(key, slots `[b]`, step) -> Batch: the examples at
        the places `slots` of the batch of `step`, with the key of that step.
      length: number of steps; the chunk starts at `state.step`.
      batch_size: number of examples in a whole batch, over all devices.
      share: all slots -> the slots of this device.
    """
    slots = jnp.arange(batch_size)

    def chunk(state: Any, data: Any, key: Array, inputs: Any):
        mine = share(slots)
        at = source(data, state.step)

        def body(state, _):
            data_key, attack_key = jax.random.split(jax.random.fold_in(key, state.step))
            keys = jax.vmap(lambda slot: jax.random.fold_in(attack_key, slot))(mine)
            return step(state, at(data_key, mine, state.step), keys, inputs)

        return jax.lax.scan(body, state, length=length)

    return chunk
