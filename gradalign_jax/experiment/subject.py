"""The classifier of a task with its data, built from the config, and its measurement on the test split."""

from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gradalign_jax import alignment, data, memory, models, parallel
from gradalign_jax.attacks import pgd
from gradalign_jax.data import pipeline
from gradalign_jax.evaluation import directions as further
from gradalign_jax.evaluation import results, schedule, suite
from gradalign_jax.evaluation.options import CW, PGD, Attacks, Directions, Square, Suite
from gradalign_jax.evaluation.programs import Evaluation, build
from gradalign_jax.experiment import batches, config_checks, directions, estimates
from gradalign_jax.storage import pictures
from gradalign_jax.storage.atomic import write_atomically
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.types import IMAGE_RANGE, Attack, Classifier, Estimate


class Stream(IntEnum):
    """The independent streams of randomness below a run's one seed."""

    INIT = 0
    ORDER = 1
    STEP = 2
    VALIDATE = 3
    TEST = 4
    VALIDATION_SET = 5
    TEST_SET = 6


def create_classifier(config: ConfigDict, dataset: data.Dataset) -> Classifier:
    """Create the configured model; batch statistics, if it has any, are those of the whole batch over all devices.

    Raises:
      ValueError: if an option does not fit the data set.
    """
    config_checks.check_fits(config, "model", dataset.name, dataset.image_shape, dataset.num_classes)
    options = {key: value for key, value in config.model.items() if key not in ("name", "pretrained")}
    if not options.get("frozen_norm", True):
        options["axis_name"] = parallel.AXIS
    return models.create(config.model.name, num_classes=dataset.num_classes, **options)


def attack_bounds(config: ConfigDict, dataset: data.Dataset) -> tuple[float, float]:
    """Return the range that attacked images are clamped to.

    It is [-1, 1]; with attack.clip="data" it is widened to the range of the training images.
    """
    return IMAGE_RANGE if config.attack.clip == "range" else batches.image_range(dataset)


class Subject(NamedTuple):
    """A classifier without its weights, and the data that it is trained or measured on.

    config: the task's, with the sections `data`, `attack` and `evaluate`.
    bounds: the range that attacked images are clamped to.
    measuring: the Δx of ᾱ_Δx, if any.
    key: from the seed that trained the classifier; a sampled test set and the attacks' randomness derive from it.
    """

    config: ConfigDict
    dataset: data.Dataset
    classifier: Classifier
    bounds: tuple[float, float]
    measuring: Estimate | None
    devices: list[jax.Device]
    key: jax.Array

    def stream(self, number: int) -> jax.Array:
        """Return the key of one of the run's independent streams of randomness."""
        return jax.random.fold_in(self.key, number)

    def split(self, name: str) -> data.Split:
        """Return a split, on the host."""
        stream = {"validation": Stream.VALIDATION_SET, "test": Stream.TEST_SET}.get(name, 0)
        return batches.split(self.config, self.dataset, name, self.stream(stream))

    def training_attack(self) -> Attack:
        """Return the attack of PGD training, PGD L∞."""
        attack = self.config.attack
        return pgd.make("linf", steps=attack.steps, loss=attack.loss, bounds=self.bounds)

    def attacks(self, *norms: str) -> Attacks:
        """Return the configured attacks on a test split, with PGD in these norms."""
        config, section = self.config, self.config.evaluate
        white = PGD(
            norms=norms,
            steps=config.attack.steps,
            step_size=config.attack.step_size,
            l2_step_size=section.l2_step_size,
            l2_epsilons=section.l2_epsilons,
            loss=config.attack.loss,
            precision=config.precision.evaluation,
        )
        black = Square(section.square_queries, section.square_images, config.precision.square)
        return Attacks(
            section.linf_epsilons,
            white,
            black if section.square_queries else None,
            CW(section.cw_images, section.cw_iterations, section.cw_learning_rate) if section.cw_images else None,
            self.bounds,
        )

    @property
    def block(self) -> int:
        """Images per device and program call: the configured number, or as many as memory allows."""
        return self.config.evaluate.block or memory.block("evaluate", self.dataset.image_shape, self.devices)

    def evaluation(self, split: data.Split, stream: int, attacks: Attacks, block: int = 0) -> Evaluation:
        """Build the measurements of a split, `block` images at a time (0: `self.block`)."""
        return build(
            self.classifier,
            split,
            attacks,
            on=self.devices,
            block=block or self.block,
            key=self.stream(stream),
            delta_x=self.measuring,
        )


def load_subject(
    config: ConfigDict, run: ConfigDict, batch_size: int, some_classes: bool = False, folder: Path | None = None
) -> Subject:
    """Build the subject of a task; model and seed are those of `run`, the config that trains or trained it.

    `some_classes` and `folder`: as in `estimates.load_delta_x`.
    """
    dataset = batches.load(config)
    return Subject(
        config,
        dataset,
        create_classifier(run, dataset),
        attack_bounds(config, dataset),
        estimates.load_delta_x(config.evaluate, dataset, "test", config.evaluate.images, some_classes, folder),
        parallel.devices(config.devices, batch_size),
        jax.random.key(run.seed),
    )


def head(split: data.Split, images: int) -> data.Split:
    """Return the first `images` images of a split (0 = all)."""
    return data.Split(*(rows[: images or None] for rows in split))


def a_few(split: data.Split, each: int, most: int | None = None) -> np.ndarray:
    """Return the positions of the first `each` images of each class, at most `most` in all."""
    return np.concatenate([np.flatnonzero(split.label == c)[:each] for c in np.unique(split.label)])[:most]


def test(subject: Subject, variables: Any, workdir: Workdir, by_class: bool = False) -> dict[str, Any]:
    """Measure weights on the test split and draw the pictures.

    Args:
      subject: the classifier and its data.
      variables: its weights.
      workdir: records finished points, and holds the pictures.
      by_class: also write images.csv, with the distances and alignments of every class.

    Returns:
      `results.summarize`, a description of the Δx as `delta_x`, and the numbers of a configured suite as `suite`, of
      configured gradients as `directions`.
    """
    config = subject.config
    split = head(subject.split("test"), config.evaluate.images)
    attacks = subject.attacks("linf", "l2")
    plan = schedule.plan(attacks, by_class)
    block, value = _recorded_block(subject, workdir)
    evaluation = subject.evaluation(split, Stream.TEST, attacks, block)
    copies, measuring = parallel.replicate(variables, subject.devices), subject.measuring

    def compute(point: schedule.Point) -> dict[str, list]:
        found = point.compute()
        if point.measure == "alignment":  # before the attacks
            index = split.index[point.part.start : point.part.stop]
            estimates.check_targets(
                config.evaluate.store, measuring, index, found["target"], config.get("classifier", "")
            )
        return found

    def remember(point: schedule.Point) -> dict[str, list]:
        return value(point.measure, point.epsilon, point.part.start, lambda: compute(point))

    values = schedule.measure(evaluation, copies, plan, remember)
    if by_class:
        write_atomically(workdir.path / "images.csv", results.table_of_images(values, split, plan))
    result = results.summarize(values, split, plan) | {"delta_x": measuring and dict(measuring.described)}
    if config.evaluate.suite != "paper":
        wrong = values["clean", None]["predicted"] != split.label
        result["suite"] = _measure_suite(subject, split, copies, wrong, block, remember)
        result["warnings"] += result["suite"].pop("warnings")
    chosen = directions.load(config, subject.dataset, split, measuring, workdir.path)
    if chosen:
        target = values["alignment", None]["target"]
        result["directions"] = further.measure(evaluation, copies, split, target, chosen, remember)
    with pictures.optional():
        draw(subject, variables, split, result["curves"], workdir, chosen)
    return result


def _measure_suite(
    subject: Subject, split: data.Split, copies: Any, wrong: np.ndarray, block: int, remember: Any
) -> dict[str, Any]:
    """Run the configured suite of attacks on the test split; return its part of the result."""
    section = subject.config.evaluate
    options = Suite(section.suite, section.norm, section.suite_steps, queries=section.suite_queries)
    epsilons = section.linf_epsilons if options.norm == "linf" else section.l2_epsilons
    square = Square(options.queries, norm=options.norm, precision=options.precision)
    evaluation = subject.evaluation(split, Stream.TEST, Attacks(epsilons, square=square, bounds=subject.bounds), block)
    classes = subject.dataset.num_classes
    part = suite.measure(evaluation, options, copies, epsilons, wrong, classes, subject.bounds, remember)
    return {"name": options.name, "norm": options.norm, **part}


def _recorded_block(subject: Subject, workdir: Workdir) -> tuple[int, Any]:
    """Return the block size of a recorded evaluation, and the workdir's record of points.

    Points are ranges of whole blocks, so an evaluation that resumes on another device keeps its block size. If another
    size is configured, for instance after memory ran out, everything is measured again.
    """
    value = workdir.remembered()
    block = value("block", None, 0, lambda: subject.block)
    if subject.config.evaluate.block in (0, block):
        return block, value
    workdir.forget_points(keep=("weights", "validation"))
    value = workdir.remembered()
    return value("block", None, 0, lambda: subject.block), value


def draw(
    subject: Subject,
    variables: Any,
    split: data.Split,
    curves: dict[str, Any],
    workdir: Workdir,
    chosen: Directions | None = None,
) -> None:
    """Draw the error over ε, and ∇ℓ(x) of a few images of the split; keep the arrays for the report."""
    pictures.draw_curves(workdir.path / "curves.png", curves)
    measuring, classes = subject.measuring, len(np.unique(split.label))
    few = a_few(split, max(1, 8 // classes), 8)
    batch = pipeline.gather(data.Split(*(jnp.asarray(rows[few]) for rows in split)), jnp.arange(len(few)))

    @jax.jit
    def gradients(variables, image, label):
        return alignment.target_gradient(lambda x: subject.classifier.apply(variables, x)[0], image, label)

    gradient, target = gradients(variables, batch.image, batch.label)
    delta_x = None
    if measuring is not None:
        arguments = batch.image, batch.label, target, batch.index
        delta_x = jax.jit(lambda vector, *arguments: vector(*arguments))(measuring.delta_x, *arguments)
    pictures.draw_gradients(workdir.path / "gradients.png", batch.image, gradient, delta_x)
    arrays = {"image": batch.image, "label": batch.label, "target": target, "gradient": gradient}
    arrays |= {} if delta_x is None else {"delta_x": delta_x}
    if chosen:
        keys = jax.vmap(lambda place: jax.random.fold_in(subject.stream(Stream.TEST), place))(jnp.asarray(few))
        arrays |= directions.draw(workdir.path, subject.classifier, variables, chosen, batch, target, keys)
    pictures.write_arrays(workdir.path / "pictures.npz", **arrays)  # for the report, which runs without JAX
