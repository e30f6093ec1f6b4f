"""The tasks' own programs at the paper's sizes, traced without data, weights or the target's devices.

Stand-ins replace data sets and trained generators. Everything else is the code of a run, so findings of a report or a
test hold for runs.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from ml_collections import ConfigDict

from gradalign_jax import data, parallel, training
from gradalign_jax.attacks import square
from gradalign_jax.deltax import exact, projection
from gradalign_jax.experiment import artifacts, batches, config_checks, estimates
from gradalign_jax.experiment.subject import Stream
from gradalign_jax.models import biggan, biggan_folded
from gradalign_jax.tasks import classifier
from gradalign_jax.tasks import gan as gan_task
from gradalign_jax.tasks import project as project_task
from gradalign_jax.tasks import vrgan as vrgan_task
from gradalign_jax.training import gan, loop, vrgan
from gradalign_jax.types import Estimate

_SPLITS = {
    "cifar10": ((32, 32, 3), 10, np.uint8, {"train": 45_000, "validation": 5_000, "test": 10_000}),
    "mnist": ((28, 28, 1), 10, np.uint8, {"train": 54_000, "validation": 6_000, "test": 10_000}),
    "squares": ((224, 224, 1), 2, np.float32, {"train": 10_000, "validation": 200, "test": 1_000}),
}


class Program(NamedTuple):
    """A traced program.

    Attributes:
      traced: the program.
      steps: steps, iterations or queries of one call.
      batch: images or pairs on a device.
      key: the config key that sets `batch`.
      macs: multiply-accumulates that a step needs for one image or pair; 0 if unknown.
      unknown: iterations of a loop whose length is an argument.
    """

    traced: jax.stages.Traced
    steps: int
    batch: int
    key: str
    macs: float = 0
    unknown: int = 1


def _dataset(name: str) -> data.Dataset:
    """Return a data set of the right shapes that takes no memory."""
    if name == "spheres":
        return data.load(name)
    shape, classes, kind, sizes = _SPLITS[name]
    splits = {
        split: data.Split(
            np.broadcast_to(np.zeros((), kind), (n, *shape)), np.zeros(n, np.int32), np.arange(n, dtype=np.int32)
        )
        for split, n in sizes.items()
    }
    delta_x = exact.squares((142, 88), 224) if name == "squares" else None
    return data.Dataset(name, classes, shape, splits, delta_x=delta_x)


def _generator(classes: int, channels: int, width: int = 256) -> Any:
    """Return random variables of a conditional generator, on the host."""
    shapes = jax.eval_shape(biggan.create_generator(classes, channels, width).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), shapes)


def _stored(dataset: data.Dataset) -> Estimate:
    """Return a Δx that reads the latents of the whole data set from a store."""
    count = sum(len(split.label) for split in dataset.splits.values())

    def delta_x(arrays, image, label, target, index):
        z = arrays["z"][arrays["pair"][arrays["row"][index], target]]
        generate_fn = artifacts.generate_fn(arrays["generator"], dataset.image_shape[0])
        return projection.delta_x(generate_fn, image, target, z)

    arrays = {
        "z": jax.ShapeDtypeStruct((count * dataset.num_classes + 1, 128), jnp.float32),
        "pair": jax.ShapeDtypeStruct((count, dataset.num_classes), jnp.int32),
        "row": jax.ShapeDtypeStruct((count,), jnp.int32),
        "generator": biggan_folded.fold(_generator(dataset.num_classes, dataset.image_shape[-1])),
    }
    return Estimate(Partial(delta_x, arrays), {"source": "projection"})


def _config(name: str, task: str, changes: dict[str, Any]) -> ConfigDict:
    config = importlib.import_module(f"configs.{name}").get_config(task)
    config.update_from_flattened_dict(changes)
    config_checks.resolve(config)
    return config


def _run(name: str, task: str, changes: dict[str, Any]) -> classifier.ClassifierRun:
    config, dataset = _config(name, task, changes), _dataset(name)
    exact_delta_x = dataset.delta_x is not None
    estimate = Estimate(Partial(dataset.delta_x), {}) if exact_delta_x else None
    if task == "align" and not exact_delta_x:
        estimate = _stored(dataset)
    with (
        mock.patch.object(batches, "load", lambda _: dataset),
        mock.patch.object(estimates, "load_delta_x", lambda *_, **__: estimate),
        mock.patch.object(estimates, "check_apart", lambda *_: None),
    ):
        return classifier.ClassifierRun(config, None)


def _state(run: classifier.ClassifierRun) -> Any:
    optimizer = classifier.create_optimizer(run.config)
    state = jax.eval_shape(lambda key: training.create_state(run.classifier, optimizer, key), jax.random.key(0))
    return parallel.replicate(state, run.devices)


def train(on: Sequence[jax.Device], name: str, task: str, macs: float = 0, length: int = 0, **changes: Any) -> Program:
    """Trace a chunk of training steps of a classifier; `length` overrides the number of steps."""
    with parallel.rehearsal(on) as caught:
        run = _run(name, task, changes)
        steps = length or loop.chunk_length(run.steps_per_epoch, run.config.train.log_every)
        run.chunk(steps)(_state(run))
    return Program(caught.traced, steps, run.config.train.batch_size // len(on), "train.batch_size", macs)


def evaluate(on: Sequence[jax.Device], name: str, measure: str, macs: float = 0, **changes: Any) -> Program:
    """Trace one block of an evaluation; `measure` is pgd_linf, pgd_l2, square, alignment or clean."""
    steps = 10 if measure == "square" else 1
    with parallel.rehearsal(on) as caught:
        run = _run(name, "pgd", {"evaluate.square_queries": 5000, "evaluate.block": 100, **changes})
        evaluation = run.subject.evaluation(run.dataset.splits["test"], Stream.TEST, run.subject.attacks("linf", "l2"))
        variables, one = _state(run).variables, range(len(on) * evaluation.block)
        if measure == "alignment":
            evaluation.alignments(variables, one)
        elif measure == "square":
            shape = (len(one), *run.dataset.image_shape)
            state = square.State(np.zeros(shape, np.int8), *(np.zeros(len(one), kind) for kind in ("f4", "i4")))
            evaluation.query(variables, np.asarray(one, np.int32), np.full(len(one), 0.01), state, 0, steps)
        elif measure == "clean":
            evaluation.clean(variables, one)
        else:
            evaluation.attacked(variables, measure, 0.01, 0.02, one)
    return Program(caught.traced, steps, evaluation.block, "evaluate.block", macs, steps)


def project(on: Sequence[jax.Device], name: str, macs: float = 0, **changes: Any) -> Program:
    """Trace the projection of one block of pairs; a step is one of Adam."""
    config, dataset = _config(name, "project", {"project.block": 512, **changes}), _dataset(name)
    shape = {"num_classes": dataset.num_classes, "channels": dataset.image_shape[-1], "width": 256, "latent_dim": 128}
    described = {**shape, "dataset": name, "image_size": dataset.image_shape[0], "digest": ""}
    variables = _generator(dataset.num_classes, dataset.image_shape[-1])
    with (
        mock.patch.object(batches, "load", lambda _: dataset),
        mock.patch.object(artifacts, "load_gan", lambda *_: (None, variables, described)),
        parallel.rehearsal(on) as caught,
    ):
        latents, classes = project_task.ProjectRun(config, None).latents, dataset.num_classes
        targets = np.zeros((len(on), latents.lines(classes), classes), np.int32)
        arguments = parallel.split((targets[..., 0], targets), latents.devices)
        latents.program(np.asarray(latents.steps, np.int32), *arguments)
    steps = sum(latents.steps)
    mean_phase = steps // 2  # the length of a phase is an argument
    return Program(caught.traced, steps, targets[0].size, "project.block", macs, mean_phase)


def train_gan(on: Sequence[jax.Device], name: str, macs: float = 0, length: int = 0, **changes: Any) -> Program:
    """Trace a chunk of iterations of the conditional GAN."""
    config, dataset = _config(name, "gan", changes), _dataset(name)
    with (
        mock.patch.object(batches, "load", lambda _: dataset),
        mock.patch.object(gan_task, "training_images", lambda *_: dataset.splits["train"]),
        parallel.rehearsal(on) as caught,
    ):
        run = gan_task.GanRun(config, None)
        steps = length or loop.chunk_length(math.gcd(run.per_epoch, config.gan.sample_every), config.train.log_every)
        networks = run.generator, run.discriminator, run.optimizer()
        state = jax.eval_shape(lambda key: gan.create_state(*networks, key), jax.random.key(0))
        run.chunk(steps)(parallel.replicate(state, run.devices))
    return Program(caught.traced, steps, config.train.batch_size // len(on), "train.batch_size", macs)


def train_vrgan(on: Sequence[jax.Device], name: str, macs: float = 0, length: int = 0, **changes: Any) -> Program:
    """Trace a chunk of steps of a VR-GAN."""
    config, dataset = _config(name, "vrgan", changes), _dataset(name)
    with mock.patch.object(batches, "load", lambda _: dataset), parallel.rehearsal(on) as caught:
        run = vrgan_task.VRGANRun(config, None)
        steps = length or loop.chunk_length(run.steps_per_epoch, config.train.log_every)
        networks = run.generator, run.critic, run.optimizer
        state = jax.eval_shape(lambda key: vrgan.create_state(*networks, key), jax.random.key(0))
        run.chunk(steps)(parallel.replicate(state, run.devices))
    return Program(caught.traced, steps, config.train.batch_size // len(on), "train.batch_size", macs)


_CIFAR = 0.5554e9  # multiply-accumulates of ResNet-18 with the 3x3 stem, one image forward
PROGRAMS: dict[str, Callable[..., Program]] = {
    "cifar_baseline": lambda on, **k: train(on, "cifar10", "baseline", 3 * _CIFAR, **k),
    "cifar_pgd": lambda on, **k: train(on, "cifar10", "pgd", 83 * _CIFAR, **k),
    "cifar_align": lambda on, **k: train(on, "cifar10", "align", 0, **k),
    "cifar_evaluate": lambda on, **k: evaluate(on, "cifar10", "pgd_linf", 81 * _CIFAR, **k),
    "cifar_alignment": lambda on, **k: evaluate(on, "cifar10", "alignment", 0, **k),
    "cifar_square": lambda on, **k: evaluate(on, "cifar10", "square", _CIFAR, **k),
    "cifar_gan": lambda on, **k: train_gan(on, "cifar10", 0, **k),
    "cifar_gan_bfloat16": lambda on, **k: train_gan(on, "cifar10", 0, **{"precision.training": "bfloat16", **k}),
    "cifar_project": lambda on, **k: project(on, "cifar10", 2 * 1.1745e9, **k),
    "cifar_project_bfloat16": lambda on, **k: project(
        on, "cifar10", 2 * 1.1745e9, **{"precision.projection": "bfloat16", **k}
    ),
    "squares_vrgan": lambda on, **k: train_vrgan(on, "squares", 0, **k),
    "mnist_pgd": lambda on, **k: train(on, "mnist", "pgd", 0, **k),
    "mnist_align": lambda on, **k: train(on, "mnist", "align", 0, **k),
    "spheres_pgd": lambda on, **k: train(on, "spheres", "pgd", 83 * 1.501e6, **k),
}
