"""Task `project`: find the generator's image of each class that is closest to each image, and store its latent."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from gradalign_jax import alignment, data, paper, parallel, paths
from gradalign_jax.data import pipeline
from gradalign_jax.errors import RunError
from gradalign_jax.evaluation.blocks import Blocks
from gradalign_jax.experiment import artifacts, batches, closest
from gradalign_jax.experiment.latents import Latents
from gradalign_jax.experiment.subject import a_few
from gradalign_jax.storage import pictures, weights
from gradalign_jax.storage.result import provenance
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.types import Estimate, predicted

_PICTURED = 10  # images in the picture, with at least two per class


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
      RunError: if the generator or the classifier is unfinished, damaged, or of another data set.
    """

    def __init__(self, config: ConfigDict, workdir: Workdir):
        self.config, self.workdir, shared = config, workdir, config.project.shared
        if shared and jax.process_count() > 1:
            raise RunError("config.project.shared is for runs of one process each: start them one by one")
        if shared and (paths.as_path(shared) / "config.json").exists():
            raise RunError(f"config.project.shared={shared!r} is a run's own directory, give another")
        self.dataset = batches.load(config)
        _, self.variables, self.described = artifacts.load_gan(config.project.generator, config.project.ema)
        check_generator(config.project.generator, self.described, self.dataset)
        self.judge = closest.load(config.project.classifier, self.dataset) if config.project.classifier else None
        self.devices = parallel.devices(config.devices, 0)
        self.path = paths.absolute(shared) if shared else workdir and workdir.path
        folder = self.path / artifacts.STORE if self.path else None
        described = self.variables, self.described
        self.latents = Latents(config, self.dataset, *described, self.devices, folder, bool(shared))
        self.pairs = self.latents.pairs

    def missing(self) -> np.ndarray:
        """Return the numbers of the configured pairs that the store lacks, ascending.

        Raises:
          RunError: if the store is another run's.
        """
        lacking = self.latents.missing()
        if self.judge is None or self.config.project.classes == "all" or not len(lacking):
            return lacking
        wanted = closest.classes(self.judge, self.pairs.images, self.devices, self.latents.block)
        return lacking[wanted[self.pairs.row[lacking], self.pairs.target[lacking]]]

    def run(self) -> dict[str, Any]:
        """Project, then measure what was found; return the content of result.json."""
        missing = self.missing()  # before anything is written
        weights.write(self.path / artifacts.GENERATOR, self.variables, **self.described)
        (self.latents.share if self.latents.shared else self.latents.fill)(missing)
        estimate = artifacts.load_projections(self.path, self.dataset)
        similarity = self.similarity(estimate)
        exact = similarity is not None
        result = {
            "dataset": self.dataset.name,
            "task": "project",
            "seed": self.config.seed,
            "images": len(self.pairs.images.label),
            "pairs": int(estimate.covered.sum()),
            "generator": self.described["digest"],
            "loss": self.losses(),
            "similarity": float(similarity.mean()) if exact else None,
            "similarity_sd": float(similarity.std()) if exact else None,
            **self.moves(estimate),
            "traces": self.latents.traces,
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
        found, images = self.latents.store.read(), self.pairs.images
        penalized = found["loss"] + self.config.project.penalty * np.mean(found["z"] ** 2, axis=1)
        own = images.label[self.pairs.row[self.pairs.find(found["index"], found["target"])]] == found["target"]
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
        blocks = Blocks(self.shown(), on=on, block=self.latents.block, block_key="config.project.block")
        return blocks.map(cosine)(parallel.replicate(estimate.delta_x, on))

    def moves(self, estimate: Estimate) -> dict[str, Any]:
        """Return how far and how well the shown images move to each class.

        Returns:
          `norms`: mean ‖Δ̂x‖₂ as `delta_to_C`, by the images' own class. `moved`, `moved_by_destination`: the share of
          x̂′ that `project.classifier` assigns to the class, over other classes; None without a classifier.
        """
        images, judge, classes = self.shown(), self.judge, self.dataset.num_classes

        def measure(arguments, batch):
            delta_x, variables = arguments

            def towards(target):
                vector = delta_x(batch.image, batch.label, jnp.full_like(batch.label, target), batch.index)
                measured = {"norm": jnp.linalg.norm(vector.reshape(len(vector), -1), axis=1)}
                if judge:
                    measured["class"] = predicted(judge.classifier.apply(variables, batch.image + vector)[0])
                return measured

            return jax.tree.map(jnp.transpose, jax.lax.map(towards, jnp.arange(classes)))

        on = parallel.local(self.devices)[:1]
        blocks = Blocks(images, on=on, block=self.latents.block, block_key="config.project.block")
        arguments = estimate.delta_x, judge.variables if judge else ()
        found = blocks.map(measure)(parallel.replicate(arguments, on))  # [N, K]
        held = np.isfinite(found["norm"])
        other = held & (np.arange(classes) != images.label[:, None])
        norms: dict[str, dict[str, float]] = {f"delta_to_{target}": {} for target in range(classes)}
        for own, target in itertools.product(np.unique(images.label), range(classes)):
            if (some := held[:, target] & (images.label == own)).any():
                norms[f"delta_to_{target}"][str(own)] = float(found["norm"][some, target].mean())
        result: dict[str, Any] = {"norms": norms, "moved": None, "moved_by_destination": None}
        if judge:
            right = found["class"] == np.arange(classes)
            result["moved"] = float(right[other].mean())
            result["moved_by_destination"] = {
                str(c): float(right[other[:, c], c].mean()) for c in range(classes) if other[:, c].any()
            }
        return result

    def draw(self, estimate: Estimate) -> None:
        """Draw a few images of each class with their projection onto every class (Figures S2, S5, S6)."""
        split, classes = self.shown(), self.dataset.num_classes
        few = a_few(split, max(2, _PICTURED // classes))
        image, label, index = pipeline.gather(jax.device_put(split), few)

        @jax.jit
        def projected(delta_x, target):
            target = jnp.full_like(label, target)
            return image + delta_x(image, label, target, index)

        def columns(delta_x):  # NaN where there is no latent
            return np.stack([projected(delta_x, target) for target in range(classes)], axis=1)

        arrays = {"image": image, "label": label, "projected": columns(estimate.delta_x)}
        pictures.draw_projections(self.workdir.path / "projections.png", image, arrays["projected"], label)
        if self.config.project.solver == "paper":
            arrays["projected_first"] = columns(self.after_first_phase(estimate, split.index[a_few(split, 1)]))
        if self.dataset.delta_x is not None:
            arrays["delta_x"] = self.dataset.delta_x(image, label, 1 - label, index)
        pictures.write_arrays(self.workdir.path / "pictures.npz", **arrays)  # for the report, which runs without JAX

    def after_first_phase(self, estimate: Estimate, index: np.ndarray) -> Partial:
        """Return Δ̂x as it was before the steps with the penalty, for some images; NaN for all others."""
        vector: Any = estimate.delta_x
        (arrays,) = vector.args
        row, target = np.nonzero(estimate.covered & np.isin(estimate.index, index)[:, None])
        pair = self.pairs.find(estimate.index[row], target)
        place = arrays["pair"][row, target][np.argsort(pair)]
        found = self.latents.results(np.sort(pair), (self.config.project.steps[0], 0))
        numbers, z, _ = map(np.concatenate, zip(*found, strict=True))
        latents = np.full_like(arrays["z"], np.nan)
        latents[place[np.searchsorted(np.sort(pair), numbers)]] = z
        return Partial(vector.func, arrays | {"z": latents})


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
    if outcome.get("moved") is not None:
        lines.append(f"x̂′ that the classifier assigns to their class: {outcome['moved']:.1%}")
    return "\n".join(lines + [f"note: {note}" for note in outcome["notes"]])
