"""The Δx that a config names: exact, by an estimator, or from a finished run; and which Δx may train or measure."""

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

from gradalign_jax import data, models, paths
from gradalign_jax.deltax import encoder, teacher
from gradalign_jax.errors import RunError
from gradalign_jax.experiment import artifacts, batches, kept
from gradalign_jax.models import biggan_folded
from gradalign_jax.storage import weights
from gradalign_jax.types import Estimate

_SAMPLED = 10_000  # examples of a sampled data set for an estimator


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
    for key, load in (("generator", of_generator), ("store", artifacts.load_projections), ("teacher", of_classifier)):
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

    if not getattr(module, "TRAINED", False):
        return Estimate(make(), described)
    return Estimate(kept.once(folder, described | {"data": _digest(examples)}, make), described)


def _digest(examples: tuple[np.ndarray, np.ndarray]) -> str:
    return weights.digest(dict(zip(("images", "labels"), examples, strict=True)))


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


def load_residual(directory: str | os.PathLike, dataset: data.Dataset) -> Estimate:
    """Load the Δx of a finished VR-GAN run: its generator's residual, in evaluation mode.

    Raises:
      RunError: if the run is unfinished, damaged, of another task, or of another data set.
    """
    variables, described = weights.read(paths.as_path(directory) / artifacts.GENERATOR)
    config = ConfigDict(described.get("config", {"task": "different"}))
    if config.task != "vrgan":
        raise RunError(
            f"{directory} holds the generator of a {config.task} run: config.*.generator takes a vrgan run, "
            "config.*.store a project run"
        )
    if config.data.name != dataset.name:
        raise RunError(f"{directory} holds a generator for {config.data.name}, not {dataset.name}: give another one")
    generator = artifacts.create_residual_generator(config)

    def delta_x(variables, image, label, target, index):
        return generator.apply(variables, image, target, label)[0]

    described = {"source": "vrgan", "digest": described["digest"], "seed": config.seed}
    return Estimate(Partial(delta_x, variables), described)


def load_teacher(directory: str | os.PathLike, dataset: data.Dataset, epsilon: float) -> Estimate:
    """Load the Δx along a targeted attack, of L2 norm up to ε, on a finished run's classifier.

    Raises:
      RunError: as `artifacts.load_classifier`, or if its number of classes differs.
    """
    variables, config, described = artifacts.load_classifier(directory, dataset.name, "config.*.teacher")
    artifacts.check_classes(directory, described, dataset)
    options = {key: value for key, value in config.model.items() if key not in ("name", "pretrained")}
    classifier = models.create(config.model.name, num_classes=dataset.num_classes, **options)

    def logits_fn(variables, image):
        return classifier.apply(variables, image)[0]

    made = teacher.make(Partial(logits_fn, variables), epsilon, bounds=batches.image_range(dataset))
    return Estimate(made, {"source": "teacher", "digest": described["digest"], "epsilon": epsilon})


def load_encoder(
    directory: str | os.PathLike, dataset: data.Dataset, penalty: float = 0.0, folder: Path | None = None
) -> Estimate:
    """Train an encoder for the generator of a finished GAN run on the data set, and return its Δx.

    `folder` is the directory of a run that keeps it; None: it is trained at every start.

    Raises:
      RunError: as `artifacts.load_gan`, or if the generator is of another data set.
    """
    _, variables, described = artifacts.load_gan(directory)
    if described["dataset"] != dataset.name:
        raise RunError(
            f"{directory} holds a generator for {described['dataset']}, not {dataset.name}: give another one"
        )
    generate = artifacts.generate_fn(biggan_folded.fold(variables), dataset.image_shape[0])
    options = {"penalty": penalty} if penalty else {}
    source = {"source": "encoder", **{name: described[name] for name in ("digest", "run")}, **options}
    examples = training_images(dataset)
    make = partial(encoder.make, generate, *examples, latent_dim=described["latent_dim"], **options)
    return Estimate(kept.once(folder, source | {"data": _digest(examples)}, make), source)


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
