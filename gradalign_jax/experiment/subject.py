"""How a classifier is measured, for the tasks that do: its parts from the config, points that survive a kill, files."""

from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from gradalign_jax import alignment, data, memory, models, parallel
from gradalign_jax.attacks import cw, pgd, square
from gradalign_jax.data import pipeline
from gradalign_jax.evaluation import measurements
from gradalign_jax.evaluation.programs import Evaluation
from gradalign_jax.experiment import artifacts, batches
from gradalign_jax.storage import pictures
from gradalign_jax.storage.workdir import Workdir, write_atomically
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
    """The configured model; batch statistics, where there are any, are those of the whole batch over all devices."""
    options = {key: value for key, value in config.model.items() if key not in ("name", "pretrained")}
    if not options.get("frozen_norm", True):
        options["axis_name"] = parallel.AXIS
    return models.create(config.model.name, num_classes=dataset.num_classes, **options)


def attack_bounds(config: ConfigDict, dataset: data.Dataset) -> tuple[float, float]:
    """What attacked images are clamped to: [-1, 1], or with attack.clip="data" the training data's range if wider."""
    if config.attack.clip == "range" or "train" not in dataset.splits:
        return IMAGE_RANGE
    image = dataset.splits["train"].image
    if image.dtype == np.uint8:
        return IMAGE_RANGE
    return min(IMAGE_RANGE[0], float(image.min())), max(IMAGE_RANGE[1], float(image.max()))


class Subject(NamedTuple):
    """A classifier, without its weights, and the data that it is trained or measured on.

    config: the task's, with the sections `data`, `attack` and `evaluate`.
    key: of the seed that trained it; a drawn test set and the attacks' randomness derive from it.
    """

    config: ConfigDict
    dataset: data.Dataset
    classifier: Classifier
    bounds: tuple[float, float]
    measuring: Estimate | None
    devices: list[jax.Device]
    key: jax.Array

    def stream(self, number: int) -> jax.Array:
        """One of the run's independent streams of randomness."""
        return jax.random.fold_in(self.key, number)

    def split(self, name: str) -> data.Split:
        """A split on the host."""
        stream = {"validation": Stream.VALIDATION_SET, "test": Stream.TEST_SET}.get(name, 0)
        return batches.split(self.config, self.dataset, name, self.stream(stream))

    def attack(self, norm: str) -> Attack:
        """The configured PGD in one norm."""
        attack = self.config.attack
        return pgd.make(norm, steps=attack.steps, loss=attack.loss, bounds=self.bounds)

    @property
    def block(self) -> int:
        """Images that a program measures at a time on each device, where the config leaves it open as memory allows."""
        return self.config.evaluate.block or memory.block("evaluate", self.dataset.image_shape, self.devices)

    def evaluation(self, split: data.Split, stream: int, norms: tuple[str, ...], block: int = 0) -> Evaluation:
        """Measurements on a split; `block` images at a time (0: `self.block`)."""
        section = self.config.evaluate
        return Evaluation(
            self.classifier,
            split,
            on=self.devices,
            block=block or self.block,
            key=self.stream(stream),
            attacks={f"pgd_{norm}": self.attack(norm) for norm in norms},
            delta_x=self.measuring,
            loss=self.config.attack.loss,
            black_box=square.parts(section.square_queries, bounds=self.bounds) if section.square_queries else None,
            nearest=cw.make(
                iterations=section.cw_iterations, learning_rate=section.cw_learning_rate, bounds=self.bounds
            ),
            search=self.config.precision.evaluation,
            queries=self.config.precision.square,
        )


def load_subject(config: ConfigDict, run: ConfigDict, batch_size: int) -> Subject:
    """The parts that `config` names; model and seed are those of `run`, the config that trains or trained it."""
    dataset = batches.load(config)
    return Subject(
        config,
        dataset,
        create_classifier(run, dataset),
        attack_bounds(config, dataset),
        artifacts.load(config.evaluate, dataset, "test", config.evaluate.images),
        parallel.devices(config.devices, batch_size),
        jax.random.key(run.seed),
    )


def head(split: data.Split, images: int) -> data.Split:
    """The first `images` of a split; 0: all."""
    return data.Split(*(rows[: images or None] for rows in split))


def plan(config: ConfigDict, by_class: bool) -> measurements.Plan:
    """What the config asks to be measured on the test split."""
    section = config.evaluate
    return measurements.Plan(
        white_box={
            "pgd_linf": (config.attack.step_size, section.linf_epsilons),
            "pgd_l2": (section.l2_step_size, section.l2_epsilons),
        },
        square_epsilons=section.linf_epsilons,
        square_queries=section.square_queries,
        square_images=section.square_images,
        nearest_images=section.cw_images,
        by_class=by_class,
        loss=config.attack.loss,
    )


def test(subject: Subject, variables: Any, workdir: Workdir, by_class: bool = False) -> dict[str, Any]:
    """Measures weights on the test split and draws the pictures; returns `measurements.summarise`.

    by_class: also write images.csv, with every class's distance and alignment.
    """
    split = head(subject.split("test"), subject.config.evaluate.images)
    asked = plan(subject.config, by_class)
    copies, value = parallel.replicate(variables, subject.devices), workdir.remembered()
    # Points are ranges of whole blocks, so an evaluation that resumes on another device keeps its block size.
    block = value("block", None, 0, lambda: subject.block)
    if subject.config.evaluate.block not in (0, block):  # asked for after memory ran out, say: measured anew
        workdir.forget_points()
        value = workdir.remembered()
        block = value("block", None, 0, lambda: subject.block)
    evaluation = subject.evaluation(split, Stream.TEST, ("linf", "l2"), block)
    with tqdm(unit="point", desc="test", dynamic_ncols=True, smoothing=0.05) as bar:

        def tick(queries: int, left: int) -> None:
            bar.set_description(f"test square_linf, query {queries}, {left} left")

        points = measurements.schedule(evaluation, copies, asked, tick)
        bar.reset(len(points))
        measured = []
        for point in points:
            size = "" if point.epsilon is None else f", ε={point.epsilon:g}"
            bar.set_description(f"test {point.measure}{size}", refresh=False)
            measured.append((point, value(point.measure, point.epsilon, point.part.start, point.compute)))
            bar.update()
    values = measurements.gather(measured)
    if by_class:
        write_atomically(workdir.path / "images.csv", measurements.table_of_images(values, split, asked))
    measuring = subject.measuring
    result = measurements.summarise(values, split, asked) | {"delta_x": measuring and dict(measuring.described)}
    draw(subject, variables, result["curves"], workdir)
    return result


def draw(subject: Subject, variables: Any, curves: dict[str, Any], workdir: Workdir) -> None:
    """The pictures: error over ε, and ∇ℓ(x) of a few test images."""
    pictures.draw_curves(workdir.path / "curves.png", curves)
    split, measuring = head(subject.split("test"), subject.config.evaluate.images), subject.measuring
    classes = np.unique(split.label)
    each = max(1, 8 // len(classes))
    few = np.concatenate([np.flatnonzero(split.label == c)[:each] for c in classes])[:8]
    batch = pipeline.gather(data.Split(*(jnp.asarray(rows[few]) for rows in split)), jnp.arange(len(few)))

    @jax.jit
    def gradients(variables, image, label):
        return alignment.target_gradient(lambda x: subject.classifier.apply(variables, x)[0], image, label)

    gradient, target = gradients(variables, batch.image, batch.label)
    delta_x = None
    if measuring is not None:
        delta_x = jax.jit(measuring.delta_x)(measuring.arrays, batch.image, batch.label, target, batch.index)
    pictures.draw_gradients(workdir.path / "gradients.png", batch.image, gradient, delta_x)
    arrays = {"image": batch.image, "label": batch.label, "target": target, "gradient": gradient}
    arrays |= {} if delta_x is None else {"delta_x": delta_x}
    np.savez_compressed(workdir.path / "pictures.npz", **arrays)  # the report's, without JAX
