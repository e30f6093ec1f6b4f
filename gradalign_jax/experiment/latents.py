"""The latents of pairs of an image and a class: searched on the devices, kept in a store that later runs can extend."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gradalign_jax import data, memory, parallel, stopping
from gradalign_jax.data import pipeline
from gradalign_jax.deltax import projection
from gradalign_jax.errors import RunError
from gradalign_jax.experiment import artifacts
from gradalign_jax.experiment.pairs import lay_out, select
from gradalign_jax.lease import BEATS, Lease
from gradalign_jax.models import biggan_folded
from gradalign_jax.ops import precision
from gradalign_jax.storage import shards
from gradalign_jax.terminal import progress_bar
from gradalign_jax.types import Array, Variables

EXPIRY = 120.0  # seconds after which a shard whose process does not renew its lease is taken over


class Latents:
    """The latents of a run's images and classes, on disk and computed.

    Args:
      config: a projection run's.
      dataset: the data.
      variables, described: the generator (`artifacts.load_gan`).
      devices: what they are computed on.
      folder: the store's directory; None if nothing is stored.
      shared: whether other processes fill the store as well.
    """

    def __init__(
        self,
        config: ConfigDict,
        dataset: data.Dataset,
        variables: Variables,
        described: Mapping[str, Any],
        devices: Sequence[jax.Device],
        folder: Path | None,
        shared: bool = False,
    ):
        self.config, self.dataset, self.devices, self.folder = config, dataset, list(devices), folder
        self.shared = shared
        self.variables, self.described = variables, described
        self.pairs = select(config, dataset)
        self.block = config.project.block or memory.block("project", dataset.image_shape, self.devices)
        self.precision = precision.resolve(config.precision.projection)
        self.traces = 0

    # ---- the store

    def identity(self) -> dict[str, Any]:
        """Return everything that the latents depend on, and the size of a shard."""
        settings, images = self.config.project, self.pairs.images
        digest = hashlib.blake2b(images.index.tobytes() + self.image_hash.tobytes(), digest_size=16)
        return {
            "dataset": self.dataset.name,
            "data": digest.hexdigest(),
            "images": len(images.label),
            "generator": self.described["digest"],
            "rows": len(self.pairs.row),
            "shard": self.shard,
            "precision": self.precision,
            **{name: settings[name] for name in ("steps", "learning_rate", "penalty", "eps")},
            **{name: settings[name] for name in ("splits", "skip_own_class")},
            **({} if settings.solver == "paper" else {"solver": settings.solver}),
        }

    @cached_property
    def image_hash(self) -> np.ndarray:
        """A hash of each image, `[N]`."""
        return artifacts.image_hashes(self.pairs.images)

    @property
    def shard(self) -> int:
        """The number of pairs in a shard: that of a store that an earlier start began, or one block of images."""
        if self.folder and (self.folder / "identity.json").exists():
            return shards.find(self.folder).identity["shard"]
        classes = len(self.pairs.row) // len(self.pairs.images.label)
        return classes * self.lines(classes if self.config.project.classes == "all" else 1)

    @cached_property
    def store(self) -> shards.Store:
        """The store that this run fills, claimed on first use."""
        assert self.folder is not None, "these Latents were built without a folder"
        return shards.claim(self.folder, self.identity(), self.shared)

    def missing(self) -> np.ndarray:
        """Return the numbers of the pairs that the store lacks, ascending; damaged shards are logged."""
        lacking = np.ones(len(self.pairs.row), bool)
        for number in range(self.store.shards):
            lacking[self.held(number)] = False
        return np.flatnonzero(lacking)

    def held(self, number: int) -> np.ndarray:
        """Return the numbers of the pairs in a shard."""
        found = self.store.shard(number)
        return self.pairs.find(found["index"], found["target"]) if found else np.zeros(0, int)

    def write(self, shard: int, pair: np.ndarray, z: np.ndarray, loss: np.ndarray) -> None:
        """Write a shard: the pairs that it has, and these.

        Raises:
          RunError: if a latent is not finite, because the search diverged, or the shard cannot be written.
        """
        row = self.pairs.row[pair]
        index, target = self.pairs.images.index[row], self.pairs.target[pair]
        bad = np.flatnonzero(~np.isfinite(z).all(1))
        if len(bad):
            raise RunError(
                f"the projection of image {index[bad[0]]} to class {target[bad[0]]} is not finite: lower "
                f"config.project.learning_rate, or look at the generator in {self.config.project.generator}"
            )
        arrays = {"z": z, "loss": loss, "index": index, "image": self.image_hash[row], "target": target}
        if held := self.store.shard(shard):
            new = ~np.isin(pair, self.pairs.find(held["index"], held["target"]))  # another process may have been faster
            arrays = {name: np.concatenate([held[name], rows[new]]) for name, rows in arrays.items()}
            order = np.argsort(self.pairs.find(arrays["index"], arrays["target"]))
            arrays = {name: rows[order] for name, rows in arrays.items()}
        self.store.write(shard, **arrays)

    # ---- the search

    def lines(self, classes: int) -> int:
        """Return the number of images in a block of images × classes."""
        return max(1, round(self.block / classes))

    @property
    def steps(self) -> tuple[int, ...]:
        """The number of Adam steps in each phase of the configured solver."""
        steps = self.config.project.steps
        return steps if self.config.project.solver == "paper" else (round(sum(steps) / 3),)

    def solver(self, steps: Array) -> projection.Project:
        """Build the configured solver."""
        settings = self.config.project
        rest = settings.penalty, self.described["latent_dim"], settings.eps
        if settings.solver == "paper":
            return projection.make(steps, settings.learning_rate, *rest)
        return projection.make_fast(steps[0], 2.5 * settings.learning_rate[0], *rest)

    @cached_property
    def program(self):
        """The projection of a block: (steps, images `[b]`, classes `[b, D]`) -> z and loss `[b, D]`, on every device.

        It is traced once for every D.
        """
        size, images = self.dataset.image_shape[0], self.pairs.images

        def block(constants, steps, row, targets):
            self.traces += 1
            folded, exact, images = constants
            image = pipeline.to_float(images[row])
            with precision.scope(self.precision):
                z = projection.onto_classes(self.solver(steps), artifacts.generate_fn(folded, size), image, targets)
            loss = partial(projection.loss, artifacts.generate_fn(exact, size), image)
            return z, jax.vmap(loss, in_axes=1, out_axes=1)(targets, z)

        # The search may use bfloat16; what it found is measured in float32.
        fold = partial(biggan_folded.fold, self.variables)
        searched = fold(precision.factors(self.precision))
        constants = parallel.replicate((searched, fold(jnp.dtype("float32")), images.image), self.devices)
        return partial(parallel.pmap(block, self.devices, in_axes=(0, None, 0, 0)), constants)

    def calls(self, pair: np.ndarray, steps: Sequence[int]) -> Iterator[tuple[np.ndarray, tuple[Array, Array]]]:
        """Dispatch the projection of pairs, a block of images × classes on each device in a call.

        Args:
          pair: numbers of pairs, ascending.
          steps: number of steps in each phase.

        Yields:
          The numbers of the pairs `[devices, b, D]`, -1 for a class that is left out; and z and loss, on the devices.
        """
        grid = lay_out(self.pairs.row, pair, self.block)
        lines, count = self.lines(grid.shape[1]), len(self.devices)
        for first in range(0, len(grid), lines * count):
            chosen = grid[first : first + lines * count]
            chosen = np.pad(chosen, ((0, lines * count - len(chosen)), (0, 0)), constant_values=-1)
            chosen = chosen.reshape(count, lines, -1)
            computed = np.where(chosen >= 0, chosen, chosen.max(-1, keepdims=True))  # what is left out: any pair
            arguments = parallel.split((self.pairs.row[computed[..., 0]], self.pairs.target[computed]), self.devices)
            yield chosen, self.program(np.asarray(steps, np.int32), *arguments)

    def results(self, pair: np.ndarray, steps: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the numbers of pairs `[n]`, their latents `[n, d]` and losses `[n]`, call by call.

        Raises:
          OutOfMemoryError: if a block does not fit into a device's memory.
        """

        def fetch(numbers, result):
            kept = numbers >= 0
            return numbers[kept], *(rows[kept] for rows in parallel.fetch(result))

        with memory.limited_by("config.project.block", self.block, self.devices[0]):
            pending = None
            for call in self.calls(pair, steps):
                if pending:  # the next call is dispatched before the last one's latents are fetched
                    yield fetch(*pending)
                pending = call
            if pending:
                yield fetch(*pending)

    def share(self, missing: np.ndarray) -> None:
        """Compute pairs that a shared store lacks, `[n]` ascending, until they are there: each shard by one process.

        Raises:
          OutOfMemoryError: if a block does not fit into a device's memory.
          RunError: if a search diverged, or a shard cannot be written.
        """
        size, asked = self.store.identity["shard"], missing
        while len(missing):
            with ExitStack() as stack:
                leases: dict[int, Lease] = {}
                for number in map(int, np.unique(missing // size)):
                    lease = self.store.lease(number, EXPIRY) if len(leases) < len(self.devices) else None
                    if lease:
                        leases[number] = stack.enter_context(lease.held(EXPIRY))
                own = np.isin(missing // size, list(leases))
                held = [self.held(number) for number in leases]
                self.fill(np.setdiff1d(missing[own], np.concatenate(held) if held else []).astype(int), leases)
            missing = missing[~own]
            if not len(missing):  # a lease that was lost, or a shard that was damaged, leaves some
                missing = np.intersect1d(asked, self.missing())
            elif not leases:  # the shards that are left are leased; a lease expires when its holder dies
                stopping.check()
                time.sleep(min(10.0, EXPIRY / BEATS))

    def fill(self, missing: np.ndarray, leases: Mapping[int, Lease] | None = None) -> None:
        """Compute pairs that the store lacks, `[n]` ascending; write each shard when its last one is there.

        Args:
          missing: numbers of the pairs.
          leases: those of the shards, if the store is shared; a shard whose lease was lost is not written.

        Raises:
          OutOfMemoryError: if a block does not fit into a device's memory.
          RunError: if a search diverged, or a shard cannot be written.
        """
        if not len(missing):
            return
        size = self.store.identity["shard"]
        awaited = np.bincount(missing // size)
        found: dict[int, list] = {}
        with progress_bar(total=len(missing), unit="pair", desc="projecting") as bar:
            for numbers, z, loss in self.results(missing, self.steps):
                for shard in np.unique(numbers // size):
                    own = numbers // size == shard
                    parts = found.setdefault(int(shard), [])
                    parts.append((numbers[own], z[own], loss[own]))
                    if sum(len(part[0]) for part in parts) < awaited[shard]:
                        continue
                    done = map(np.concatenate, zip(*found.pop(int(shard)), strict=True))
                    if not leases or leases[int(shard)].renew():
                        self.write(int(shard), *done)
                bar.update(len(numbers))
                bar.set_postfix({"loss": f"{loss.mean():.4f}"}, refresh=False)
