"""Finished runs that launch/deltax.py measures with, and the small classifiers that replace missing ones."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from gradalign_jax import data, models
from gradalign_jax.attacks import losses, pgd
from gradalign_jax.deltax import projection
from gradalign_jax.deltax.encoder import BATCH, fit, perceptron
from gradalign_jax.errors import RunError
from gradalign_jax.experiment import artifacts
from gradalign_jax.models import biggan_folded
from gradalign_jax.types import Batch, DeltaX, LogitsFn

DIGITS = {"mnist35": np.array([3, 5])}  # classes of MNIST's generator
ROBUST = {"spheres": 0.1}  # ε of the attack that trains the default teacher, L2


class Case(NamedTuple):
    """A data set with its test images and, for each of them, the class to move to."""

    dataset: data.Dataset
    examples: tuple[np.ndarray, np.ndarray]
    test: Batch
    target: np.ndarray


class Runs(NamedTuple):
    """Directories of finished runs by the data set that they are for."""

    gan: dict[str, Path]
    vrgan: dict[str, Path]
    judge: dict[str, Path]
    teacher: dict[str, Path]


# The tasks of each flag's runs, and the file that such a run leaves.
_TASKS = {
    "generator": (("gan", "vrgan"), artifacts.GENERATOR),
    "judge": (("classifier",), artifacts.CLASSIFIER),
    "teacher": (("classifier",), artifacts.CLASSIFIER),
}


def sort(generators: Iterable[Path], judges: Iterable[Path], teachers: Iterable[Path], datasets: Iterable[str]) -> Runs:
    """Return the runs of the three flags by their kind and data set.

    Raises:
      RunError: a directory without a finished run, a run of another task, of a data set that is not measured, or a
        second run of a kind for one data set.
    """
    usable = {*datasets, *("mnist" for name in datasets if name in DIGITS)}
    found: dict[str, dict[str, Path]] = {kind: {} for kind in Runs._fields}
    for flag, directories in (("generator", generators), ("judge", judges), ("teacher", teachers)):
        for directory in directories:
            task, name = _described(flag, directory)
            kind = task if flag == "generator" else flag
            if name not in usable:
                raise RunError(f"--{flag}={directory} is of {name}, which is not measured: add --data={name}")
            if name in found[kind]:
                raise RunError(
                    f"--{flag}={directory} is a second {kind} for {name}, beside {found[kind][name]}: keep one"
                )
            found[kind][name] = directory
    return Runs(**found)


def _described(flag: str, directory: Path) -> tuple[str, str]:
    """Return the task and the data set of a finished run that fits a flag."""
    tasks, file = _TASKS[flag]
    remedy = f"give the directory of a finished {' or '.join(tasks)} run"
    try:
        config = json.loads((directory / "config.json").read_text())
        task, name = config["task"], config["data"]["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"--{flag}={directory} holds no readable config.json: {remedy}") from error
    if task not in tasks:
        raise RunError(f"--{flag}={directory} is a {task} run: {remedy}")
    if not (directory / file).is_file():
        raise RunError(f"--{flag}={directory} is unfinished, {file} is missing: {remedy}")
    return task, name


# ---- classifiers


def load_judge(case: Case, runs: Runs) -> LogitsFn:
    """Return the classifier that judges x + Δ̂x: of a run, or a perceptron trained on noisy images."""
    if directory := runs.judge.get(case.dataset.name):
        return _classifier(directory, case.dataset)
    scale = 0.5 * float(np.std(case.examples[0]))
    return _small_classifier(case, lambda key, _, x, __: x + scale * jax.random.normal(key, x.shape))


def load_teacher(case: Case, runs: Runs) -> LogitsFn:
    """Return the classifier of `teacher`: of a run, or a perceptron trained on attacked images."""
    if directory := runs.teacher.get(case.dataset.name):
        return _classifier(directory, case.dataset)
    epsilon = ROBUST.get(case.dataset.name, 2.0)
    attack = pgd.make("l2", steps=7)
    return _small_classifier(case, lambda key, f, x, y: attack(f, key, x, y, epsilon, 2.5 * epsilon / 7))


def _classifier(directory: Path, dataset: data.Dataset) -> LogitsFn:
    variables, config, described = artifacts.load_classifier(directory, dataset.name, "--judge or --teacher")
    artifacts.check_classes(directory, described, dataset)
    options = {key: value for key, value in config.model.items() if key not in ("name", "pretrained")}
    model = models.create(config.model.name, num_classes=dataset.num_classes, **options)
    return Partial(lambda variables, image: model.apply(variables, image)[0], variables)


def _small_classifier(case: Case, change: Callable[..., jax.Array], steps: int = 1500) -> LogitsFn:
    """Train a perceptron on images changed by `change(key, logits_fn, image, label)`."""
    images, labels = case.examples
    blind = jnp.zeros(BATCH, jnp.int32)  # the perceptron has a bias per class, a classifier must not know it

    def objective(params, key, images, labels):
        row = jax.random.randint(key, (BATCH,), 0, len(labels))
        image, label = images[row], labels[row]
        image = change(key, lambda x: perceptron(params, x, blind), image, label)
        return losses.cross_entropy(perceptron(params, image, blind), label).mean()

    sizes = (images[0].size, 512, 512, case.dataset.num_classes)
    params = fit(objective, sizes, 1, steps, 1e-3, jax.random.key(2), jnp.asarray(images), jnp.asarray(labels))
    return Partial(lambda params, x: perceptron(params, x, jnp.zeros(len(x), jnp.int32)), params)


# ---- conditional GANs


def load_generator(directory: Path, dataset: data.Dataset) -> tuple[projection.GenerateFn, int]:
    """Return the generator of a GAN run, for the classes of the data set, and the size of its latents."""
    _, variables, described = artifacts.load_gan(directory)
    generate = artifacts.generate_fn(biggan_folded.fold(variables), dataset.image_shape[0])
    if dataset.name in DIGITS:
        digits = jnp.asarray(DIGITS[dataset.name])
        generate = Partial(lambda digit, generate, z, c: generate(z, digit[c]), digits, generate)
    return generate, described["latent_dim"]


def projected(generate: projection.GenerateFn, latent_dim: int, penalty: float) -> DeltaX:
    """Return Δx by the paper's 750 steps for each image."""
    project = projection.make(learning_rate=(0.2, 0.2), penalty=penalty, latent_dim=latent_dim)

    def delta_x(generate, image, label, target, index):
        return projection.delta_x(generate, image, target, project(generate, image, target))

    return Partial(delta_x, generate)
