"""Functions of a split, computed in blocks of one size on the devices.

Each program call takes one whole block per device, and each image has its own key. A value thus depends neither on the
number of devices nor on the other images of its block, and nothing is compiled twice.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from gradalign_jax import memory, parallel
from gradalign_jax.data import pipeline
from gradalign_jax.types import Array, Variables

Rows = Mapping[str, Any]  # arrays [n, ...]; "place" holds positions in the split


class Blocks:
    """A split on the devices.

    Args:
      split: images, labels and indices on the host.
      on: the devices.
      block: images per device and program call.
      key: the key that each image's own key derives from, with its position in the split.
      block_key: name of the setting behind `block`, for the message when memory runs out.
    """

    def __init__(
        self,
        split: pipeline.Split,
        *,
        on: Sequence[jax.Device],
        block: int,
        key: Array | None = None,
        block_key: str = "config.evaluate.block",
    ):
        self.size, self.label, self.block = len(split.label), np.asarray(split.label), min(block, len(split.label))
        self.devices, self._block_key = on, block_key
        self._key = jax.random.key(0) if key is None else key
        self._data = parallel.replicate(split, on)

    def resized(self, block: int) -> "Blocks":
        """Return this split in blocks of another size, without another copy of it on the devices."""
        other = copy.copy(self)
        other.block = max(1, min(block, self.size))
        return other

    def parts(self, blocks: int, size: int | None = None) -> list[range]:
        """Divide the first `size` positions (default: all) into ranges of `blocks` blocks; the last may be shorter."""
        size, step = self.size if size is None else size, blocks * self.block
        return [range(first, min(first + step, size)) for first in range(0, size, step)]

    def rows(self, part: range | None = None) -> dict[str, np.ndarray]:
        """Return the rows of a range of positions in the split (default: all)."""
        return {"place": np.asarray(range(self.size) if part is None else part, np.int32)}

    def program(self, measure: Callable[..., Any], *in_axes: int | None) -> Callable[..., Any]:
        """Build run(variables, rows, *rest, restart=0) -> results `[n, ...]` on the host.

        Args:
          measure: (variables, batch, keys, rows, *rest) -> a tree of arrays `[B, ...]`, on one block; `keys` holds one
            key per image, other keys for another `restart`; `rows` the block's share of the rows.
          in_axes: for each of `rest`, 0 if it has a leading device axis, None if all devices share it.

        Raises:
          OutOfMemoryError: from `run`, if a block does not fit into a device's memory.
        """

        def on_device(variables, data, key, rows, *rest):
            batch = pipeline.gather(data, rows["place"])
            keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(rows["place"])
            return measure(variables, batch, keys, rows, *rest)

        return partial(self._run, parallel.pmap(on_device, self.devices, in_axes=(0, 0, None, 0, *in_axes)))

    def map(self, measure: Callable[..., Any]) -> Callable[[Variables], Any]:
        """Build run(variables) -> results `[N, ...]` of measure(variables, batch), over the whole split."""
        program = self.program(lambda variables, batch, keys, rows: measure(variables, batch))
        return lambda variables: program(variables, self.rows())

    def _run(self, program: Callable, variables: Variables, rows: Rows, *rest: Any, restart: int = 0) -> Any:
        count, group = len(rows["place"]), len(self.devices) * self.block
        key = jax.random.fold_in(jax.random.split(self._key)[0], restart) if restart else self._key
        pending = []
        with memory.limited_by(self._block_key, self.block, self.devices[0]):
            for first in range(0, count, group):  # the last call repeats its last row until the blocks are full
                some = np.arange(first, first + group).clip(max=count - 1).reshape(len(self.devices), self.block)
                chosen = parallel.split(jax.tree.map(lambda leaf, some=some: leaf[some], rows), self.devices)
                pending.append(program(variables, self._data, key, chosen, *rest))
            # Every call is dispatched before the first result is fetched, so the devices do not wait.
            results = parallel.fetch(pending)
        return jax.tree.map(
            lambda *parts: np.concatenate([part.reshape(group, *part.shape[2:]) for part in parts])[:count], *results
        )
