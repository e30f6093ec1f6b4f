"""Data parallelism: `jax.pmap` spreads the batch axis over devices, `jax.shard_map` over those of several processes.

A program sees its own slice of the batch and the axis `AXIS`; averages over that axis are equal on every device.
Randomness is keyed by an example's position in the whole batch, so the number of devices changes a training
run by rounding only. Evaluation gives each device whole blocks, so there it changes nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradalign_jax.errors import RunError
from gradalign_jax.types import Array

AXIS = "devices"


class Rehearsal:
    """The result of `rehearsal`: `traced`, the first program called, as a `jax.stages.Traced`."""

    def __init__(self, on: Sequence[jax.Device]):
        self.devices, self.traced = list(on), None


class _Caught(Exception):
    """The exception that ends a rehearsal."""


_REHEARSAL: ContextVar[Rehearsal | None] = ContextVar("rehearsal", default=None)


@contextmanager
def rehearsal(on: Sequence[jax.Device]) -> Iterator[Rehearsal]:
    """Trace the first program called in the context, for the devices `on`, without running it; then leave the context.

    The devices may come from a topology and need not be present; arrays put on them in the context are only shapes.
    `rehearsal.traced.lower()` then compiles the program that a run would execute.
    """
    found = Rehearsal(on)
    token = _REHEARSAL.set(found)
    try:
        yield found
    except _Caught:
        pass
    finally:
        _REHEARSAL.reset(token)


def check_platform() -> None:
    """Initialize the devices.

    Raises:
      RunError: if JAX finds no device of the platform that JAX_PLATFORMS names.
    """
    try:
        jax.local_devices()
    except Exception as error:  # JAX raises an AssertionError without a text, or a RuntimeError
        platforms = jax.config.jax_platforms
        if not platforms:
            raise
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise RunError(f"JAX_PLATFORMS={platforms}: JAX finds no such device{reason}; unset it, or set cpu") from error


def devices(count: int, batch_size: int) -> list[jax.Device]:
    """Return the first `count` devices; for 0, as many as divide the batch size (all, if that is 0).

    Several processes use the devices of all of them.

    Raises:
      ValueError: if there are fewer than `count`, or a process would have nothing to do.
    """
    rehearsed = _REHEARSAL.get()
    present = rehearsed.devices if rehearsed else jax.devices()
    if jax.process_count() > 1:
        if count not in (0, len(present)) or batch_size % len(present):
            raise ValueError(
                f"{jax.process_count()} processes have {len(present)} devices, and each must work: leave "
                f"config.devices=0, and make config.train.batch_size={batch_size} a multiple of {len(present)}"
            )
        return present
    if count > len(present):
        raise ValueError(
            f"config.devices={count}, but {len(present)} {present[0].platform} device(s) are present: lower it "
            "(on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N makes N)"
        )
    return present[: count or max(n for n in range(1, len(present) + 1) if batch_size % n == 0)]


def pmap(fn: Callable, on: Sequence[jax.Device], in_axes: Any = 0, donate_argnums: tuple[int, ...] = ()) -> Callable:
    """Return `fn` on every device at once; arguments with `in_axes` 0, and results, have a leading device axis."""
    if found := _REHEARSAL.get():
        return partial(_trace, found, fn, in_axes, donate_argnums)
    if jax.process_count() > 1:
        return partial(_call, _Spread(fn, on, in_axes, donate_argnums))
    return jax.pmap(fn, axis_name=AXIS, in_axes=in_axes, devices=list(on), donate_argnums=donate_argnums)


class _Spread:
    """What `jax.pmap` builds from `fn`, as one program over a mesh, whose devices may belong to several processes."""

    def __init__(self, fn: Callable, on: Sequence[jax.Device], in_axes: Any, donate_argnums: tuple[int, ...]):
        self.fn, self.in_axes, self.donate_argnums = fn, in_axes, donate_argnums
        self.mesh = Mesh(np.asarray(on), (AXIS,))

    def axes(self, count: int) -> tuple[int | None, ...]:
        """Return the axis of each of `count` arguments."""
        return (self.in_axes,) * count if isinstance(self.in_axes, int) else self.in_axes

    def shardings(self, count: int) -> list[NamedSharding]:
        """Return the sharding of each of `count` arguments."""
        specs = (PartitionSpec() if axis is None else PartitionSpec(AXIS) for axis in self.axes(count))
        return [NamedSharding(self.mesh, spec) for spec in specs]

    @cached_property
    def program(self) -> Callable:
        """The compiled program; its arguments lie on the mesh."""

        def on_device(*shares: Any) -> Any:
            pairs = zip(shares, self.axes(len(shares)), strict=True)
            result = self.fn(*(x if axis is None else jax.tree.map(lambda leaf: leaf[0], x) for x, axis in pairs))
            return jax.tree.map(lambda leaf: leaf[None], result)

        def mapped(*arguments: Any) -> Any:
            specs = tuple(sharding.spec for sharding in self.shardings(len(arguments)))
            program = jax.shard_map(
                on_device, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False
            )
            return program(*arguments)

        return jax.jit(mapped, donate_argnums=self.donate_argnums)


def _trace(found: Rehearsal, fn: Callable, in_axes: Any, donate_argnums: tuple[int, ...], *arguments: Any) -> None:
    """End a rehearsal with the program that `jax.pmap` would build from `fn`."""
    spread = _Spread(fn, found.devices, in_axes, donate_argnums)
    given = [
        jax.tree.map(lambda x, s=sharding: _shape(x, s), each)
        for each, sharding in zip(arguments, spread.shardings(len(arguments)), strict=True)
    ]
    found.traced = spread.program.trace(*given)
    raise _Caught


def _call(spread: _Spread, *arguments: Any) -> Any:
    """Run the program; arguments that all devices share are the same on the host of every process."""
    given = [
        each if sharding.spec else jax.tree.map(lambda x, s=sharding: _put(x, s), each)
        for each, sharding in zip(arguments, spread.shardings(len(arguments)), strict=True)
    ]
    return spread.program(*given)


def _put(x: Any, sharding: NamedSharding) -> Array:
    """Put a host array that every process has on a mesh; each process puts its own part."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])


def _shape(x: Any, sharding: NamedSharding, lead: tuple[int, ...] = ()) -> jax.ShapeDtypeStruct:
    dtype = x.dtype if hasattr(x, "dtype") else jax.numpy.result_type(x)
    return jax.ShapeDtypeStruct((*lead, *np.shape(x)), dtype, sharding=sharding)


def split(tree: Any, on: Sequence[jax.Device]) -> Any:
    """Put row d of every `[devices, ...]` array on device d."""
    sharding = NamedSharding(Mesh(np.asarray(on), (AXIS,)), PartitionSpec(AXIS))
    put = _shape if _REHEARSAL.get() else _put
    return jax.tree.map(lambda x: put(x, sharding), tree)


def replicate(tree: Any, on: Sequence[jax.Device]) -> Any:
    """Copy every array to each device, with a leading device axis."""
    if _REHEARSAL.get():
        sharding = NamedSharding(Mesh(np.asarray(on), (AXIS,)), PartitionSpec(AXIS))
        return jax.tree.map(lambda x: _shape(x, sharding, (len(on),)), tree)
    return split(jax.tree.map(lambda x: np.broadcast_to(x, (len(on), *np.shape(x))), jax.device_get(tree)), on)


def first(tree: Any) -> Any:
    """Return the first device's copy of a replicated tree, on the host."""
    return jax.device_get(jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree))


def fetch(tree: Any) -> Any:
    """Return a tree of `[devices, ...]` results on the host of every process that computed them."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def local(on: Sequence[jax.Device]) -> list[jax.Device]:
    """Return those of the devices that belong to this process."""
    return [device for device in on if device.process_index == jax.process_index()]


def mine(rows: Array) -> Array:
    """Return, inside a program, this device's share of `[B, ...]`; B must be a multiple of the number of devices."""
    share = rows.shape[0] // jax.lax.axis_size(AXIS)
    return jax.lax.dynamic_slice_in_dim(rows, jax.lax.axis_index(AXIS) * share, share)


def mean(tree: Any) -> Any:
    """Return, inside a program, the average over devices."""
    return jax.lax.pmean(tree, AXIS)
