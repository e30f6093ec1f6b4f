"""Loaders of the files of finished runs: classifiers, generators, stores of projections, and the Δx made from them."""

import hashlib
import importlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from gradalign_jax import data, models, paths, records
from gradalign_jax.deltax import encoder, projection, teacher
from gradalign_jax.errors import RunError
from gradalign_jax.experiment import batches, kept
from gradalign_jax.measures import tangent
from gradalign_jax.models import biggan, biggan_folded
from gradalign_jax.storage import shards, weights
from gradalign_jax.types import Array, Estimate, ResidualGenerator, Variables

_SAMPLED = 10_000  # examples of a sampled data set for an estimator
CLASSIFIER, GENERATOR, STORE = "classifier.safetensors", "generator.safetensors", "store"
IMPORTED = "imported"  # the method of a classifier that no run trained (gradalign_jax/convert.py)


# ---- Δx


def load_delta_x(
    section: ConfigDict,
    dataset: data.Dataset,
    split: str,
    images: int = 0,
    some_classes: bool = False,
    folder: Path | None = None,
) -> Estimate | None:
    """Load the Δx that a config section names.

    Args:
      section: `config.delta_x` or `config.evaluate`: its `generator`, `store` or `teacher` is a finished run's
        directory; without one, its `name` (in `config.evaluate`: `delta_x`) is an estimator, a file of
        gradalign_jax/deltax whose `make(images, labels)` gets the training split, or 10,000 examples of a sampled data
        set. Without any of them the Δx is exact, if the data set has one.
      dataset: the data.
      split, images: the examples that need a Δx: the first `images` of a split (0 = all).
      some_classes: whether to accept a Δx to some of the other classes alone; `check_targets` then refuses others.
      folder: the run's directory, which keeps an estimator that is trained here; None: it is trained at every start.

    Returns:
      The Δx, or None where there is none.

    Raises:
      RunError: if the directory's run is unfinished, damaged, of another data set, or lacks some of those images or
        their classes.
    """
    name = section.get("name", section.get("delta_x", ""))
    of_classifier = partial(load_teacher, epsilon=section.teacher_epsilon)
    encode = partial(load_encoder, penalty=section.penalty, folder=folder)
    of_generator = encode if name == "encoder" else load_residual
    for key, load in (("generator", of_generator), ("store", load_projections), ("teacher", of_classifier)):
        if section[key]:
            estimate = load(section[key], dataset)
            if split in dataset.splits:
                needed = data.Split(*(rows[: images or None] for rows in dataset.splits[split]))
                _check_covers(section[key], estimate, split, needed, some_classes)
            return estimate
    if name and name != "exact":
        return _from_training_images(name, dataset, {"k": section.neighbors} if section.neighbors else {}, folder)
    if dataset.delta_x is None:
        return None
    return Estimate(Partial(dataset.delta_x), {"source": "exact"})


def _from_training_images(name: str, dataset: data.Dataset, options: dict[str, Any], folder: Path | None) -> Estimate:
    module = importlib.import_module(f"gradalign_jax.deltax.{name}")
    described, examples = {"source": name, **options}, training_images(dataset)

    def make() -> Partial:
        made = module.make(*examples, **options)
        return made if isinstance(made, Partial) else Partial(made)

    return Estimate(kept.once(folder if getattr(module, "TRAINED", False) else None, described, make), described)


def training_images(dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels that an estimator is made from.

    Raises:
      RunError: if a class has no image: its Δx would silently be another class's.
    """
    train = dataset.splits["train"] if dataset.sample is None else dataset.sample(jax.random.key(0), _SAMPLED)
    counts = np.bincount(train.label, minlength=dataset.num_classes)
    if not counts.all():
        raise RunError(
            f"the training images of {dataset.name} in use have none of class {counts.argmin()}, to which Δx is "
            "estimated: raise config.data.limit"
        )
    return np.asarray(data.to_float(jnp.asarray(train.image))), np.asarray(train.label)


def _check_covers(
    directory: str, estimate: Estimate, split: str, needed: data.Split, some_classes: bool = False
) -> None:
    if estimate.index is None:
        return
    lacking = needed.index[~np.isin(needed.index, estimate.index)]
    if len(lacking):
        raise RunError(
            f"{directory} has no Δx for {len(lacking)} of the {len(needed.index)} {split} images in use, the first is "
            f"image {lacking[0]}: finish that run, project those too (config.project.splits, config.project.images), "
            "or use fewer (config.data.limit, config.evaluate.images)"
        )
    if estimate.covered is None or some_classes:
        return
    held = estimate.covered[np.searchsorted(estimate.index, needed.index)]
    own = np.arange(held.shape[1]) == needed.label[:, None]
    row, target = np.nonzero(~(held | own))
    if len(row):
        raise RunError(
            f"{directory} has no Δx for {len(row)} pairs of a {split} image and another class, the first is image "
            f"{needed.index[row[0]]} to class {target[0]}: type its project command again, with "
            "--config.project.classes=all if that had another value"
        )


def check_targets(directory: str, estimate: Estimate | None, index: np.ndarray, target: Any, classifier: str) -> None:
    """Refuse a store that lacks the Δx to the closest classes of a classifier.

    Args:
      directory: the store's run.
      estimate: the Δx that measures; None: there is none.
      index, target: places in the data set `[n]` and c̃ `[n]` of some of the images that it covers.
      classifier: directory of the classifier's run.

    Raises:
      RunError: if a pair is missing.
    """
    if estimate is None or estimate.covered is None:
        return
    lacking = np.flatnonzero(~estimate.covered[np.searchsorted(estimate.index, index), target])
    if len(lacking):
        first = lacking[0]
        raise RunError(
            f"{directory} has no Δx to the closest class of {len(lacking)} of the first {len(index)} images, the first "
            f"is image {index[first]} to class {target[first]}: type its project command again, with "
            f"--config.project.classes=closest --config.project.classifier={classifier}"
        )


def check_apart(trained: Mapping[str, Any] | None, measuring: Mapping[str, Any] | None, same_allowed: bool) -> None:
    """Refuse to measure alignment by the generator whose Δx trained the classifier, wherever its file lies.

    Args:
      trained, measuring: descriptions of the two Δx (`Estimate.described`); None: there is none.
      same_allowed: whether to accept one generator for both.

    Raises:
      RunError: if one generator made both, and `same_allowed` is False.
    """
    # A run's raw weights and their moving average count as one generator.
    generators = {each.get("run", each.get("digest")) for each in (trained, measuring) if each}
    if trained and measuring and not same_allowed and len(generators) == 1 and None not in generators:
        raise RunError(
            "the generator whose Δx trains is also the one whose Δx measures: ᾱ_Δx would show how well training fitted "
            "it; measure with another generator, or give config.evaluate.same_generator=True"
        )


# ---- classifiers


def load_classifier(directory: str | os.PathLike, dataset_name: str, key: str) -> tuple[Variables, ConfigDict, dict]:
    """Load a finished classifier run's weights, its config, and the description stored with the weights.

    Args:
      directory: the run's directory.
      dataset_name: the data set that it must have been trained on.
      key: the config key that names the directory, for the message.

    Raises:
      RunError: if the weights are missing or damaged, or of another data set.
    """
    variables, described = weights.read(paths.as_path(directory) / CLASSIFIER)
    config = ConfigDict(described["config"])
    if config.data.name != dataset_name:
        raise RunError(
            f"{key}={directory} was trained on {config.data.name}, not on {dataset_name}: {_remedy(key, config)}"
        )
    return variables, config, described


def _remedy(key: str, config: ConfigDict) -> str:
    if key == "config.classifier":
        return f"use --config=configs/{config.data.name}.py:evaluate"
    return "give a classifier of this data set"


def check_classes(directory: str | os.PathLike, described: Mapping[str, Any], dataset: data.Dataset) -> None:
    """Refuse imported weights of another number of classes.

    Args:
      directory: the classifier's.
      described: the description stored with its weights.
      dataset: the data.

    Raises:
      RunError: if the number differs.
    """
    classes = described.get("classes", dataset.num_classes)
    if classes != dataset.num_classes:
        raise RunError(
            f"{directory} holds weights of {classes} classes, {dataset.name} has {dataset.num_classes}: give a "
            "classifier of this data set"
        )


def load_teacher(directory: str | os.PathLike, dataset: data.Dataset, epsilon: float) -> Estimate:
    """Load the Δx along a targeted attack, of L2 norm up to ε, on a finished run's classifier.

    Raises:
      RunError: as `load_classifier`, or if its number of classes differs.
    """
    variables, config, described = load_classifier(directory, dataset.name, "config.*.teacher")
    check_classes(directory, described, dataset)
    options = {key: value for key, value in config.model.items() if key not in ("name", "pretrained")}
    classifier = models.create(config.model.name, num_classes=dataset.num_classes, **options)

    def logits_fn(variables, image):
        return classifier.apply(variables, image)[0]

    made = teacher.make(Partial(logits_fn, variables), epsilon, bounds=batches.image_range(dataset))
    return Estimate(made, {"source": "teacher", "digest": described["digest"], "epsilon": epsilon})


def load_history(directory: str | os.PathLike, config: ConfigDict) -> dict[str, Any]:
    """Return the result of the run that trained a classifier; of an imported one, its `best`, `notes` and `seconds`.

    Args:
      directory: the classifier's.
      config: that of the run, stored with the weights.

    Raises:
      RunError: if the result is missing or damaged.
    """
    if config.method == IMPORTED:
        return {"best": {}, "notes": [f"weights of {config.model.pretrained}"], "seconds": None}
    remedy = "let that classifier run finish (remove a damaged file first), or correct config.classifier"
    return records.read(paths.as_path(directory) / "result.json", remedy)


# ---- VR-GAN


def create_residual_generator(config: ConfigDict, axis_name: str | None = None) -> ResidualGenerator:
    """Create the configured VR-GAN generator."""
    options = {key: value for key, value in config.generator.items() if key != "name"}
    return models.create(config.generator.name, axis_name=axis_name, **options)


def load_residual(directory: str | os.PathLike, dataset: data.Dataset) -> Estimate:
    """Load the Δx of a finished VR-GAN run: its generator's residual, in evaluation mode.

    Raises:
      RunError: if the run is unfinished, damaged, of another task, or of another data set.
    """
    variables, described = weights.read(paths.as_path(directory) / GENERATOR)
    config = ConfigDict(described.get("config", {"task": "different"}))
    if config.task != "vrgan":
        raise RunError(
            f"{directory} holds the generator of a {config.task} run: config.*.generator takes a vrgan run, "
            "config.*.store a project run"
        )
    if config.data.name != dataset.name:
        raise RunError(f"{directory} holds a generator for {config.data.name}, not {dataset.name}: give another one")
    generator = create_residual_generator(config)

    def delta_x(variables, image, label, target, index):
        return generator.apply(variables, image, target, label)[0]

    described = {"source": "vrgan", "digest": described["digest"], "seed": config.seed}
    return Estimate(Partial(delta_x, variables), described)


# ---- conditional GAN and projections


def load_gan(directory: str | os.PathLike, ema: bool = False) -> tuple[biggan.Generator, Variables, dict[str, Any]]:
    """Load a finished GAN run's generator: its functions, its variables (or their moving average), its description.

    The description holds num_classes, channels, width, latent_dim, image_size (the data set's images are the middle of
    the generator's 32 pixels), dataset, ema, config, the digest of the variables, and that of the run.

    Raises:
      RunError: if the run is unfinished, of another task, or its file damaged.
    """
    tree, described = weights.read(paths.as_path(directory) / GENERATOR)
    if not {"raw", "ema"} <= tree.keys():
        raise RunError(
            f"{directory} holds no conditional GAN: config.project.generator, and config.*.generator for encoder, take "
            "the directory of a gan run"
        )
    shape = {name: described[name] for name in ("num_classes", "channels", "width", "latent_dim")}
    variables = tree["ema" if ema else "raw"]
    own = {"ema": ema, "digest": weights.digest(variables), "run": described["digest"]}
    return biggan.create_generator(**shape), variables, described | own


def generate_fn(folded: biggan_folded.Folded, size: int) -> projection.GenerateFn:
    """Return the folded generator as a function of latents and classes, its images cropped to `size` pixels."""
    return Partial(partial(_generate, size), folded)


def _generate(size: int, folded: biggan_folded.Folded, z: Array, label: Array) -> Array:
    return biggan.crop(biggan_folded.generate(folded, z, label), size)


def load_encoder(
    directory: str | os.PathLike, dataset: data.Dataset, penalty: float = 0.0, folder: Path | None = None
) -> Estimate:
    """Train an encoder for the generator of a finished GAN run on the data set, and return its Δx.

    `folder` is the directory of a run that keeps it; None: it is trained at every start.

    Raises:
      RunError: as `load_gan`, or if the generator is of another data set.
    """
    _, variables, described = load_gan(directory)
    if described["dataset"] != dataset.name:
        raise RunError(
            f"{directory} holds a generator for {described['dataset']}, not {dataset.name}: give another one"
        )
    generate = generate_fn(biggan_folded.fold(variables), dataset.image_shape[0])
    options = {"penalty": penalty} if penalty else {}
    source = {"source": "encoder", **{name: described[name] for name in ("digest", "run")}, **options}
    make = partial(encoder.make, generate, *training_images(dataset), latent_dim=described["latent_dim"], **options)
    return Estimate(kept.once(folder, source, make), source)


def image_hashes(images: data.Split) -> np.ndarray:
    """Return a hash of each image and label, uint64 `[N]`."""
    found = [
        hashlib.blake2b(image.tobytes() + label.tobytes(), digest_size=8).digest()
        for image, label in zip(images.image, images.label, strict=True)
    ]
    return np.frombuffer(b"".join(found), np.uint64)


def load_projections(directory: str | os.PathLike, dataset: data.Dataset) -> Estimate:
    """Load the Δx of a projection run: G(z*, target) - x (Eq. 16), with x' generated on demand.

    The Δx to a class that the store does not hold is NaN; the estimate's `covered` marks the pairs in the store.

    Raises:
      RunError: if the store is empty, damaged, or of another data set, or its images differ from this data set's.
    """
    arrays, described, index = _load_store(paths.as_path(directory), dataset)
    size = dataset.image_shape[0]

    def delta_x(arrays: dict[str, Any], image: Array, label: Array, target: Array, index: Array) -> Array:
        chosen = arrays["z"][arrays["pair"][arrays["row"][index], target]]
        return projection.delta_x(generate_fn(arrays["generator"], size), image, target, chosen)

    return Estimate(Partial(delta_x, arrays), described, index, arrays["pair"] < len(arrays["z"]) - 1)


def load_tangent_space(directory: str | os.PathLike, dataset: data.Dataset, split: data.Split) -> Partial:
    """Load (label, index) -> basis of the tangent space at each image's projection onto its own class.

    Args:
      directory: a finished projection run.
      dataset: the data.
      split: the images in use.

    Raises:
      RunError: as `load_projections`, or if an image has no projection onto its own class.
    """
    arrays, _, index = _load_store(paths.as_path(directory), dataset)
    covered = np.isin(split.index, index)
    pair = arrays["pair"][arrays["row"][split.index[covered]], split.label[covered]]
    covered[covered] = pair < len(arrays["z"]) - 1
    if not covered.all():
        raise RunError(
            f"{directory} has no projection of image {split.index[~covered][0]} onto its own class: project the test "
            "images in use, with config.project.skip_own_class=False"
        )
    size = dataset.image_shape[0]

    def basis(arrays: dict[str, Any], label: Array, index: Array) -> Array:
        z = arrays["z"][arrays["pair"][arrays["row"][index], label]]
        return tangent.basis(tangent.jacobian(generate_fn(arrays["generator"], size), z, label))

    return Partial(basis, arrays)


def _load_store(directory: Path, dataset: data.Dataset) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """Return a projection run's arrays (latents `z`, the `row` of each image in `pair`, which holds each
    class's row of z, folded `generator`), source and images.

    Raises:
      RunError: as `load_projections`.
    """
    found = shards.find(directory / STORE)
    if found.identity["dataset"] != dataset.name:
        raise RunError(f"{directory} holds projections of {found.identity['dataset']}: give a run of {dataset.name}")
    pairs = found.read()
    variables, described = weights.read(directory / GENERATOR)
    if described["digest"] != found.identity["generator"]:
        raise RunError(f"{directory / GENERATOR} is not the generator that {directory / STORE} was made with")
    index, first = np.unique(pairs["index"], return_index=True)
    _check_images(directory, dataset, index, pairs["image"][first])
    row = np.zeros(index[-1] + 1, np.int32)
    row[index] = np.arange(len(index), dtype=np.int32)
    count, latent_dim = pairs["z"].shape
    pair = np.full((len(index), dataset.num_classes), count, np.int32)  # the row of z; the last stands for none
    pair[row[pairs["index"]], pairs["target"]] = np.arange(count)
    z = np.concatenate([pairs["z"], np.full((1, latent_dim), np.nan, np.float32)])
    of = {name: described[name] for name in ("digest", "run")}
    described = {"source": "projection", **of, "store": found.identity}
    return {"z": z, "pair": pair, "row": row, "generator": biggan_folded.fold(variables)}, described, index


def _check_images(directory: Path, dataset: data.Dataset, index: np.ndarray, expected: np.ndarray) -> None:
    """Compare the hashes of the projected images with the data set's images.

    Raises:
      RunError: if one differs.
    """
    for split in dataset.splits.values():
        covered = np.isin(split.index, index)
        present = data.Split(*(rows[covered] for rows in split))
        differ = image_hashes(present) != expected[np.searchsorted(index, present.index)]
        if differ.any():
            raise RunError(
                f"{directory} holds projections of other images: image {present.index[differ][0]} of {dataset.name} "
                "differs; project this data set"
            )
