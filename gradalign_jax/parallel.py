"""Everything that knows about devices: the batch axis is spread over them by `jax.pmap`.

A program sees its own slice of the batch and the axis `AXIS`; what it averages over that axis is the same on every
device. Randomness is keyed by an example's place in the whole batch, so the number of devices changes a run by
float rounding alone. Evaluation hands whole blocks to devices, so there it changes nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradalign_jax.types import Array

AXIS = "devices"


def devices(count: int, batch_size: int) -> list[jax.Device]:
    """The first `count` local devices; for 0 as many as there are and divide the batch.

    Raises:
      ValueError: if there are fewer.
    """
    present = jax.local_devices()
    if count > len(present):
        raise ValueError(
            f"config.devices={count}, but {len(present)} {present[0].platform} device(s) are present: lower it "
            "(on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N makes N)"
        )
    return present[: count or max(n for n in range(1, len(present) + 1) if batch_size % n == 0)]


def pmap(fn: Callable, on: Sequence[jax.Device], in_axes: Any = 0, donate_argnums: tuple[int, ...] = ()) -> Callable:
    """`fn` on every device at once; arguments and results carry a leading device axis where `in_axes` is 0."""
    return jax.pmap(fn, axis_name=AXIS, in_axes=in_axes, devices=list(on), donate_argnums=donate_argnums)


def split(tree: Any, on: Sequence[jax.Device]) -> Any:
    """Puts row d of every `[devices, ...]` array on device d."""
    sharding = NamedSharding(Mesh(np.asarray(on), (AXIS,)), PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.device_put(x, sharding), tree)


def replicate(tree: Any, on: Sequence[jax.Device]) -> Any:
    """A copy of every array on each device, with a leading device axis."""
    return split(jax.tree.map(lambda x: np.broadcast_to(x, (len(on), *np.shape(x))), jax.device_get(tree)), on)


def first(tree: Any) -> Any:
    """The first device's copy of a replicated tree, on the host."""
    return jax.device_get(jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree))


def mine(rows: Array) -> Array:
    """Inside a program: this device's share of `[B, ...]`; B must be a multiple of the number of devices."""
    share = rows.shape[0] // jax.lax.axis_size(AXIS)
    return jax.lax.dynamic_slice_in_dim(rows, jax.lax.axis_index(AXIS) * share, share)


def mean(tree: Any) -> Any:
    """Inside a program: the average over devices."""
    return jax.lax.pmean(tree, AXIS)
