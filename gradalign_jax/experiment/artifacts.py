"""Loaders of the files of finished runs: classifiers, generators, stores of projections."""

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from gradalign_jax import data, models, paths, records
from gradalign_jax.deltax import projection
from gradalign_jax.errors import RunError
from gradalign_jax.measures import tangent
from gradalign_jax.models import biggan, biggan_folded
from gradalign_jax.storage import shards, weights
from gradalign_jax.types import Array, Estimate, ResidualGenerator, Variables

CLASSIFIER, GENERATOR, STORE = "classifier.safetensors", "generator.safetensors", "store"
IMPORTED = "imported"  # the method of a classifier that no run trained (gradalign_jax/convert.py)


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
