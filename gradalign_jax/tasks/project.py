"""Task `project`: find the generator's image of each class that is closest to each image, and store its latent."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gradalign_jax import alignment, data, memory, paper, parallel
from gradalign_jax.data import pipeline
from gradalign_jax.deltax import projection
from gradalign_jax.errors import RunError
from gradalign_jax.evaluation.blocks import Blocks
from gradalign_jax.experiment import artifacts, batches
from gradalign_jax.experiment.subject import a_few
from gradalign_jax.models import biggan_folded
from gradalign_jax.ops import precision
from gradalign_jax.storage import pictures, shards, weights
from gradalign_jax.storage.result import provenance
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.terminal import progress_bar
from gradalign_jax.types import Array, Estimate

_PICTURED = 10  # images in the picture, with at least two per class


class Pairs(NamedTuple):
    """The pairs to project: pair p is `images[row[p]]` and class `target[p]`; images are ordered by split."""

    images: data.Split
    row: np.ndarray
    target: np.ndarray


def select(config: ConfigDict, dataset: data.Dataset) -> Pairs:
    """Return the configured images of each configured split, with the classes they are projected to."""
    parts = [[rows[: config.project.images or None] for rows in dataset.splits[s]] for s in config.project.splits]
    images = data.Split(*map(np.concatenate, zip(*parts, strict=True)))
    row, target = np.divmod(np.arange(len(images.label) * dataset.num_classes, dtype=np.int32), dataset.num_classes)
    kept = images.label[row] != target if config.project.skip_own_class else slice(None)
    return Pairs(images, row[kept], target[kept])


def check_generator(directory: str, described: Mapping[str, Any], dataset: data.Dataset) -> None:
    """Refuse a generator of another data set.

    Raises:
      RunError: if data set, number of classes or channels differ.
    """
    found = described["dataset"], described["num_classes"], described["channels"]
    if found != (dataset.name, dataset.num_classes, dataset.image_shape[-1]):
        raise RunError(
            f"config.project.generator={directory!r} makes {found[0]} in {found[1]} classes, with {found[2]} channels: "
            f"give a gan run of {dataset.name}"
        )


class ProjectRun:
    """A run's parts, built from the config; `run` gives the order of events.

    Raises:
      RunError: if the generator is unfinished, damaged, or of another data set.
    """

    def __init__(self, config: ConfigDict, workdir: Workdir):
        self.config, self.workdir = config, workdir
        self.dataset = batches.load(config)
        _, self.variables, self.described = artifacts.load_gan(config.project.generator, config.project.ema)
        check_generator(config.project.generator, self.described, self.dataset)
        self.devices = parallel.devices(config.devices, 0)
        self.pairs = select(config, self.dataset)
        self.block = (
            config.project.block or self.begun() or memory.block("project", self.dataset.image_shape, self.devices)
        )
        self.precision = precision.resolve(config.precision.projection)
        self.traces = 0

    def identity(self) -> dict[str, Any]:
        """Return everything that the latents depend on."""
        settings, images = self.config.project, self.pairs.images
        digest = hashlib.blake2b(images.index.tobytes() + artifacts.image_hashes(images).tobytes(), digest_size=16)
        return {
            "dataset": self.dataset.name,
            "data": digest.hexdigest(),
            "images": len(images.label),
            "generator": self.described["digest"],
            "rows": len(self.pairs.row),
            "shard": self.block,
            "precision": self.precision,
            **{name: settings[name] for name in ("steps", "learning_rate", "penalty", "eps")},
            **{name: settings[name] for name in ("splits", "skip_own_class")},
        }

    def begun(self) -> int:
        """Return the shard size of the store that an earlier start began, 0 if there is none."""
        folder = self.workdir and self.workdir.path / artifacts.STORE
        return shards.find(folder).identity["shard"] if folder and (folder / "identity.json").exists() else 0

    @cached_property
    def store(self) -> shards.Store:
        """The store that this run fills, claimed on first use."""
        return shards.claim(self.workdir.path / artifacts.STORE, self.identity())

    def program(self):
        """Build the projection of one block of pairs on every device; it is traced once."""
        settings, size, images = self.config.project, self.dataset.image_shape[0], self.pairs.images
        project = projection.make(
            settings.steps, settings.learning_rate, settings.penalty, self.described["latent_dim"], settings.eps
        )

        def block(folded, exact, images, row, target):
            self.traces += 1
            image = pipeline.to_float(images[row])
            with precision.scope(self.precision):
                z = project(artifacts.generate_fn(folded, size), image, target)
            loss = projection.loss(artifacts.generate_fn(exact, size), image, target, z)
            return z, loss

        # The search may use bfloat16; what it found is measured in float32.
        fold = partial(biggan_folded.fold, self.variables)
        searched = fold(precision.factors(self.precision))
        constants = parallel.replicate((searched, fold(jnp.dtype("float32")), images.image), self.devices)
        return partial(parallel.pmap(block, self.devices), *constants)

    def calls(self, missing: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield the shards of each call, one per device, and their pairs `[devices, block]`, padded to full blocks."""
        for start in range(0, len(missing), len(self.devices)):
            numbers = missing[start : start + len(self.devices)]
            filled = np.resize(numbers, len(self.devices))
            pairs = filled[:, None] * self.block + np.arange(self.block)
            yield numbers, np.minimum(pairs, len(self.pairs.row) - 1)

    def project(self, missing: list[int]) -> None:
        """Compute and write the shards that the store lacks."""
        pairs, total = self.pairs, len(self.pairs.row)
        if not missing:
            return
        limits = "config.project.block", self.block, self.devices[0], " in another --workdir"
        todo = sum(min(self.block, total - shard * self.block) for shard in missing)
        program, image_hash, pending = self.program(), artifacts.image_hashes(pairs.images), None
        with progress_bar(total=total, initial=total - todo, unit="pair", desc="projecting") as bar:

            def finish(numbers: list[int], result: tuple[Array, Array]) -> None:
                with memory.limited_by(*limits):
                    found = parallel.fetch(result)
                for shard, z, loss in zip(numbers, *found, strict=False):
                    at = slice(shard * self.block, min((shard + 1) * self.block, total))
                    row, count = pairs.row[at], at.stop - at.start
                    self.check_finite(z, shard)
                    place = {"index": pairs.images.index[row], "image": image_hash[row], "target": pairs.target[at]}
                    self.store.write(shard, z=z[:count], loss=loss[:count], **place)
                    bar.update(count)
                    bar.set_postfix({"loss": f"{loss[:count].mean():.4f}"}, refresh=False)

            for numbers, taken in self.calls(missing):
                with memory.limited_by(*limits):
                    result = program(*parallel.split((pairs.row[taken], pairs.target[taken]), self.devices))
                if pending:  # the next call is dispatched before the last one's latents are written
                    finish(*pending)
                pending = numbers, result
            finish(*pending)

    def check_finite(self, z: np.ndarray, shard: int) -> None:
        """Refuse latents of a search that diverged.

        Raises:
          RunError: if one is not finite.
        """
        if not np.isfinite(z).all():
            raise RunError(
                f"the projection of shard {shard} is not finite: lower config.project.learning_rate, or look at the "
                f"generator in {self.config.project.generator}"
            )

    def run(self) -> dict[str, Any]:
        """Project, then measure what was found; return the content of result.json."""
        missing = self.store.missing()  # refuses another run's store before anything is written
        weights.write(self.workdir.path / artifacts.GENERATOR, self.variables, **self.described)
        self.project(missing)
        estimate = artifacts.load_projections(self.workdir.path, self.dataset)
        similarity = self.similarity(estimate)
        exact = similarity is not None
        result = {
            "dataset": self.dataset.name,
            "task": "project",
            "seed": self.config.seed,
            "images": len(self.pairs.images.label),
            "pairs": len(self.pairs.row),
            "generator": self.described["digest"],
            "loss": self.losses(),
            "similarity": float(similarity.mean()) if exact else None,
            "similarity_sd": float(similarity.std()) if exact else None,
            "norms": self.norms(estimate),
            "traces": self.traces,
            **batches.described(self.dataset),
            **provenance(
                self.config,
                seconds=self.workdir.seconds(),
                devices=[device.device_kind for device in self.devices],
                notes=self.dataset.notes,
            ),
        }
        with pictures.optional():
            self.draw(estimate)
        return result

    def losses(self) -> dict[str, dict[str, float]]:
        """Return mean L_proj of each split: without and with the penalty, and over own and other classes."""
        found, images = self.store.read(), self.pairs.images
        penalized = found["loss"] + self.config.project.penalty * np.mean(found["z"] ** 2, axis=1)
        own = images.label[self.pairs.row] == self.pairs.target
        result = {}
        for name in self.config.project.splits:
            part = np.isin(found["index"], self.dataset.splits[name].index)
            values = {"mean": found["loss"][part], "with_penalty": penalized[part]}
            values |= {"own_class": found["loss"][part & own], "other_classes": found["loss"][part & ~own]}
            result[name] = {key: float(np.mean(v, dtype=np.float64)) for key, v in values.items() if len(v)}
        return result

    def shown(self) -> data.Split:
        """Return the images to measure and draw: the test images, or those of the last configured split."""
        splits = self.config.project.splits
        name = "test" if "test" in splits else splits[-1]
        chosen = np.isin(self.pairs.images.index, self.dataset.splits[name].index)
        return data.Split(*(rows[chosen] for rows in self.pairs.images))

    def similarity(self, estimate: Estimate) -> np.ndarray | None:
        """Return cos(Δx, Δ̂x) towards the other class `[N]`, or None without an exact Δx or a single other class."""
        if self.dataset.delta_x is None or self.dataset.num_classes != 2:
            return None

        def cosine(delta_x, batch):
            arguments = batch.image, batch.label, 1 - batch.label, batch.index
            return alignment.cosine_similarity(self.dataset.delta_x(*arguments), delta_x(*arguments))

        on = parallel.local(self.devices)[:1]
        blocks = Blocks(self.shown(), on=on, block=self.block, block_key="config.project.block")
        return blocks.map(cosine)(parallel.replicate(estimate.delta_x, on))

    def norms(self, estimate: Estimate) -> dict[str, dict[str, float]]:
        """Return mean ‖Δ̂x‖₂ of the shown images, as `delta_to_C` by the images' own class."""
        classes = self.dataset.num_classes

        def measure(delta_x, batch):
            def towards(target):
                vector = delta_x(batch.image, batch.label, jnp.full_like(batch.label, target), batch.index)
                return jnp.linalg.norm(vector.reshape(len(vector), -1), axis=1)

            return jax.lax.map(towards, jnp.arange(classes)).T

        images, on = self.shown(), parallel.local(self.devices)[:1]
        blocks = Blocks(images, on=on, block=self.block, block_key="config.project.block")
        norm = blocks.map(measure)(parallel.replicate(estimate.delta_x, on))  # [N, K]
        skipped = self.config.project.skip_own_class
        return {
            f"delta_to_{target}": {
                str(own): float(norm[images.label == own, target].mean())
                for own in np.unique(images.label)
                if not (skipped and own == target)
            }
            for target in range(classes)
        }

    def draw(self, estimate: Estimate) -> None:
        """Draw a few images of each class with their projection onto every class (Figures S2, S5, S6)."""
        split, classes = self.shown(), self.dataset.num_classes
        each = max(2, _PICTURED // classes)
        few = a_few(split, each)
        image, label, index = pipeline.gather(jax.device_put(split), few)

        @jax.jit
        def projected(delta_x, target):
            target = jnp.full_like(label, target)
            return image + delta_x(image, label, target, index)

        columns = np.stack([projected(estimate.delta_x, target) for target in range(classes)], axis=1)
        if self.config.project.skip_own_class:  # there is no latent
            columns[np.arange(len(label)), np.asarray(label)] = np.nan
        pictures.draw_projections(self.workdir.path / "projections.png", image, columns, label)
        arrays = {"image": image, "label": label, "projected": columns}
        if self.dataset.delta_x is not None:
            arrays["delta_x"] = self.dataset.delta_x(image, label, 1 - label, index)
        pictures.write_arrays(self.workdir.path / "pictures.npz", **arrays)  # for the report, which runs without JAX


def run(config: ConfigDict, workdir: Workdir) -> dict[str, Any]:
    """Project the configured images, or resume; return the result."""
    result = ProjectRun(config, workdir).run()
    workdir.finish(result)
    return result


def table(outcome: Mapping[str, Any]) -> str:
    """Format the losses of the splits, and the similarity to the exact Δx beside the paper's, for a terminal."""
    lines = [f"{outcome['dataset']}, {outcome['images']} images, {outcome['pairs']} pairs, {outcome['seconds']:.0f} s"]
    for split, values in outcome["loss"].items():
        lines.append(f"L_proj {split:12}" + "  ".join(f"{name} {value:.5f}" for name, value in values.items()))
    if outcome["similarity"] is not None:
        here = f"{outcome['similarity']:.3f} ± {outcome['similarity_sd']:.3f}"
        mean, sd = paper.SIMILARITY[outcome["dataset"]]
        lines.append(f"sim(Δx, Δ̂x)  here {here} (over images), paper {mean:.3f} ± {sd:.3f}")
    return "\n".join(lines + [f"note: {note}" for note in outcome["notes"]])
