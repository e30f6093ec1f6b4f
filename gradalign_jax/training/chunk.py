"""Many training steps as one program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradalign_jax.types import Array


def make_chunk(
    step: Callable,
    source: Callable,
    length: int,
    batch_size: int,
    share: Callable[[Array], Array] = lambda rows: rows,
) -> Callable:
    """Build `chunk(state, data, key, inputs) -> (state, metrics [length])`: `length` steps as one program.

    Args:
      step: as `make_step` builds it.
      source: (data, first step) -> at, called once per chunk; at(key, slots `[b]`, step) returns the Batch of those
        slots of the step's whole batch, with the step's key.
      length: number of steps; the chunk starts at `state.step`.
      batch_size: slots of a whole batch, over all devices.
      share: this device's slots out of all.

    A slot's keys derive from (key, step, slot), so a resumed run equals an uninterrupted one.
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
