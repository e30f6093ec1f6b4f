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
    """Builds `chunk(state, data, key, settings) -> (state, metrics [length])`: `length` steps as one program.

    Args:
      step: as `make_step` builds it.
      source: (data, first step) -> at, called once a chunk; at(key, slots `[b]`, step) -> Batch: the examples in
        those slots of that step's batch, `key` being that step's.
      length: number of steps; the chunk starts wherever `state.step` stands.
      batch_size: slots of a whole batch, over all devices.
      share: this device's slots out of all.

    The keys of a slot are those of (key, step, slot), so a resumed run equals an uninterrupted one.
    """
    slots = jnp.arange(batch_size)

    def chunk(state: Any, data: Any, key: Array, settings: dict[str, Array]):
        mine = share(slots)
        at = source(data, state.step)

        def body(state, _):
            data_key, attack_key = jax.random.split(jax.random.fold_in(key, state.step))
            keys = jax.vmap(lambda slot: jax.random.fold_in(attack_key, slot))(mine)
            return step(state, at(data_key, mine, state.step), keys, settings)

        return jax.lax.scan(body, state, length=length)

    return chunk
