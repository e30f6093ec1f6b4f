"""Task `gan`: train the conditional GAN, draw samples during training, and check that it did not collapse."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from gradalign_jax import data, parallel, paths, training
from gradalign_jax.data import pipeline
from gradalign_jax.errors import RunError
from gradalign_jax.evaluation.blocks import Blocks
from gradalign_jax.experiment import artifacts, batches
from gradalign_jax.experiment.subject import a_few, create_classifier
from gradalign_jax.models import biggan
from gradalign_jax.ops import precision
from gradalign_jax.storage import pictures, weights
from gradalign_jax.storage.result import provenance
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.training import gan, loop
from gradalign_jax.types import Classifier, Variables

_LEAK = "the GAN was trained on the classifier's validation images too, as the authors' was"
_BLOCK = 50  # samples that the check generates per call

# Streams of randomness below the run's one seed.
_INIT, _ORDER, _STEP, _PICTURE, _CHECK = range(5)


def training_images(config: ConfigDict, dataset: data.Dataset) -> data.Split:
    """Return the GAN's training images, padded with black to the generator's size.

    Raises:
      RunError: if they are larger than the generator's images, or not images.
    """
    if len(dataset.image_shape) != 3 or max(dataset.image_shape[:2]) > biggan.SIZE:
        raise RunError(
            f"{dataset.name} has examples of shape {dataset.image_shape}, the GAN makes images of {biggan.SIZE} x "
            f"{biggan.SIZE} pixels: choose squares32, mnist, mnist35 or cifar10"
        )
    names = ("train", "validation") if config.gan.use_validation else ("train",)
    split = data.Split(*map(np.concatenate, zip(*(dataset.splits[name] for name in names), strict=True)))
    margins = [((biggan.SIZE - size) // 2,) * 2 for size in dataset.image_shape[:2]]
    black = 0 if split.image.dtype == np.uint8 else -1
    return split._replace(image=np.pad(split.image, ((0, 0), *margins, (0, 0)), constant_values=black))


class GanRun:
    """A run's parts, built from the config; `run` gives the order of events.

    Raises:
      RunError: if the data set or the judging classifier cannot be used.
    """

    def __init__(self, config: ConfigDict, workdir: Workdir):
        self.config, self.workdir = config, workdir
        self.dataset = batches.load(config)
        self.judge = self.load_judge() if config.gan.classifier else None
        self.images = training_images(config, self.dataset)
        self.per_epoch = self.iterations_per_epoch()
        self.devices = parallel.devices(config.devices, config.train.batch_size)
        self.key = jax.random.key(config.seed)
        self.shape = {
            "num_classes": self.dataset.num_classes,
            "channels": self.dataset.image_shape[-1],
            "width": config.gan.width,
        }
        options = {**self.shape, "dtype": precision.factors(config.precision.training)}
        latent = config.gan.latent_dim
        self.generator = biggan.create_generator(**options, latent_dim=latent, axis_name=parallel.AXIS)
        self.discriminator = biggan.create_discriminator(**options)
        # Samples show the generator as the projection uses it: in float32 and evaluation mode.
        self.sampler = jax.jit(biggan.create_generator(**self.shape, latent_dim=latent).apply)
        self.notes = [*self.dataset.notes, *([_LEAK] if config.gan.use_validation else [])]

    def stream(self, number: int) -> jax.Array:
        """Return the key of one of the run's independent streams of randomness."""
        return jax.random.fold_in(self.key, number)

    def load_judge(self) -> tuple[Classifier, Variables]:
        """Load the classifier that judges samples, with its weights."""
        directory, name = self.config.gan.classifier, self.dataset.name
        variables, config, described = artifacts.load_classifier(directory, name, "config.gan.classifier")
        artifacts.check_classes(directory, described, self.dataset)
        return create_classifier(config, self.dataset), variables

    # ---- training

    def iterations_per_epoch(self) -> int:
        """Return the number of iterations that use every image at most once.

        Raises:
          RunError: if there are too few images for one iteration.
        """
        needed = self.config.train.batch_size * self.config.gan.d_steps
        if len(self.images.label) < needed:
            raise RunError(
                f"an iteration needs {needed} images, there are {len(self.images.label)}: lower "
                "config.train.batch_size or config.gan.d_steps"
            )
        return len(self.images.label) // needed

    def chunk(self, length: int):
        """Build the training program of `length` iterations, on all devices."""
        config, batch, d_steps = self.config, self.config.train.batch_size, self.config.gan.d_steps
        order_key, size, per_epoch = self.stream(_ORDER), len(self.images.label), self.per_epoch
        step = gan.make_step(
            self.generator,
            self.discriminator,
            self.optimizer(),
            num_classes=self.dataset.num_classes,
            latent_dim=config.gan.latent_dim,
            loss=gan.Loss(config.gan.feature_matching, config.gan.hinge),
            ema=gan.Average(config.gan.ema_decay, config.gan.ema_start),
            mean=parallel.mean,
            products=config.precision.training,
        )

        def source(split, first):
            order = pipeline.epoch_order(order_key, first // per_epoch, size, per_epoch * d_steps * batch)
            order = order.reshape(per_epoch, d_steps, batch)
            return lambda key, slots, step: pipeline.gather(split, order[step % per_epoch][:, slots])

        chunk = training.make_chunk(step, source, length, batch, parallel.mine)
        program = parallel.pmap(chunk, self.devices, in_axes=(0, 0, None, None), donate_argnums=(0,))
        images = parallel.replicate(self.images, self.devices)
        return lambda state: program(state, images, self.stream(_STEP), None)

    def optimizer(self):
        """Create Adam; each network has its own state."""
        return training.adam(self.config.optimizer.learning_rate, self.config.optimizer.b1, self.config.optimizer.b2)

    def fresh_state(self) -> gan.GanState:
        """Return the state of step 0, on the host."""
        networks = self.generator, self.discriminator
        return jax.device_get(gan.create_state(*networks, self.optimizer(), self.stream(_INIT)))

    def train(self) -> gan.GanState:
        """Train from the last checkpoint, or from step 0; return the last state, on the host."""
        config = self.config
        # No program runs past the end of a data epoch, or past an iteration after which samples are drawn.
        length = loop.chunk_length(math.gcd(self.per_epoch, config.gan.sample_every), config.train.log_every)

        def draw(period: int, state: gan.GanState, best: tuple, bar: tqdm) -> tuple:
            with pictures.optional():
                self.draw(parallel.first(state))
            return best

        state, _ = loop.train(
            self.fresh_state(),
            (),  # nothing is selected: the last state is the result
            workdir=self.workdir,
            devices=self.devices,
            chunk=partial(self.chunk, length),
            end_epoch=draw,
            length=length,
            total=config.gan.iterations,
            steps_per_epoch=config.gan.sample_every,
            checkpoint_minutes=config.train.checkpoint_minutes,
            batch_size=config.train.batch_size,
        )
        return state

    def sample(self, variables: Variables, key: jax.Array, label: np.ndarray) -> np.ndarray:
        """Generate images `[N, H, W, C]` of the classes `label` in evaluation mode, at the data set's size."""
        z = jax.random.normal(key, (len(label), self.config.gan.latent_dim))
        image, _ = self.sampler(variables, z, jnp.asarray(label))
        return np.asarray(biggan.crop(image, self.dataset.image_shape[0]))

    def draw(self, state: gan.GanState) -> None:
        """Draw samples, one row per class, always from the same latents."""
        classes, columns = self.dataset.num_classes, self.config.gan.sample_columns
        label = np.repeat(np.arange(classes), columns)
        image = self.sample(state.generator, self.stream(_PICTURE), label)
        rows = image.reshape(classes, columns, *image.shape[1:])
        folder = self.workdir.path / "samples"
        paths.make_folder(folder)
        for path in (folder / f"{int(state.step):06d}.png", self.workdir.path / "samples.png"):
            pictures.draw_mosaic(path, rows)

    # ---- the check

    def check(self, variables: Variables) -> dict[str, Any]:
        """Compare samples with real images: their spread within a class, and whether they belong to the class."""
        each, classes = self.config.gan.check_images, self.dataset.num_classes
        label = np.resize(np.arange(classes), -(-each * classes // _BLOCK) * _BLOCK)
        parts = [
            self.sample(variables, jax.random.fold_in(self.stream(_CHECK), i), block)
            for i, block in enumerate(label.reshape(-1, _BLOCK))
        ]
        size = self.dataset.image_shape[0]
        chosen = a_few(self.images, each)
        real = np.asarray(biggan.crop(pipeline.to_float(jnp.asarray(self.images.image[chosen])), size))
        sets = {"samples": (np.concatenate(parts), label), "data": (real, self.images.label[chosen])}
        means = class_means(*sets["data"], classes)
        accuracy = {name: nearest_mean_accuracy(*each, means) for name, each in sets.items()}
        result = {
            "spread": {name: spread(*each, classes) for name, each in sets.items()},
            "nearest_mean_accuracy": accuracy,
            "classifier_accuracy": None,
        }
        if self.judge is not None:
            result["classifier_accuracy"] = {name: self.classified(*each) for name, each in sets.items()}
        return result

    def classified(self, image: np.ndarray, label: np.ndarray) -> float:
        """Return the share of images that the classifier assigns to their class."""
        model, variables = self.judge
        split = data.Split(image, np.asarray(label, np.int32), np.arange(len(label), dtype=np.int32))
        on = parallel.local(self.devices)[:1]
        blocks = Blocks(split, on=on, block=_BLOCK)
        logits = blocks.map(lambda variables, batch: model.apply(variables, batch.image, train=False)[0])
        return float(np.mean(logits(parallel.replicate(variables, on)).argmax(-1) == label))

    def run(self) -> dict[str, Any]:
        """Train, save the generator and check it; return the content of result.json."""
        state, config = self.train(), self.config
        digest = weights.write(
            self.workdir.path / artifacts.GENERATOR,
            {"raw": state.generator, "ema": state.ema},
            **self.shape,
            latent_dim=config.gan.latent_dim,
            image_size=self.dataset.image_shape[0],
            dataset=config.data.name,
            config=config.to_dict(),
        )
        with pictures.optional():
            self.draw(state)
        return {
            "dataset": config.data.name,
            "task": "gan",
            "seed": config.seed,
            "iterations": int(state.step),
            "images": len(self.images.label),
            "parameters": {name: count(getattr(state, name)["params"]) for name in ("generator", "discriminator")},
            "losses": last_losses(self.workdir),
            "collapse": {"raw": self.check(state.generator), "ema": self.check(state.ema)},
            "digest": digest,
            **batches.described(self.dataset),
            **provenance(
                self.config,
                seconds=self.workdir.seconds(),
                devices=[device.device_kind for device in self.devices],
                notes=self.notes,
            ),
        }


def count(params: Any) -> int:
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def last_losses(workdir: Workdir) -> dict[str, float]:
    """Return the losses of the last logged iterations; {} where no line of the metrics can be read."""
    last = (workdir.history() or [{}])[-1]
    return {name.removeprefix("train/"): value for name, value in last.items() if name != "step"}


def class_means(image: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Return the mean image of each class, `[K, H, W, C]`."""
    return np.stack([image[label == c].mean(0, dtype=np.float64) for c in range(classes)])


def spread(image: np.ndarray, label: np.ndarray, classes: int) -> list[float]:
    """Return for each class the RMS distance of a pixel from the class's mean image, in units of [-1, 1]."""
    means = class_means(image, label, classes)
    return [float(np.sqrt(np.mean((image[label == c] - means[c]) ** 2))) for c in range(classes)]


def nearest_mean_accuracy(image: np.ndarray, label: np.ndarray, means: np.ndarray) -> float:
    """Return the share of images whose nearest class mean is that of their own class."""
    distances = np.stack([np.sum((image - mean) ** 2, axis=(1, 2, 3)) for mean in means], axis=1)
    return float(np.mean(distances.argmin(1) == label))


def run(config: ConfigDict, workdir: Workdir) -> dict[str, Any]:
    """Train the configured GAN, or resume; return its result."""
    result = GanRun(config, workdir).run()
    workdir.finish(result)
    return result


def table(outcome: Mapping[str, Any]) -> str:
    """Format the losses, and samples beside real images, for a terminal."""
    lines = [f"{outcome['dataset']}, gan, seed {outcome['seed']}, {outcome['iterations']} iterations"]
    lines += [f"{name:26}{value:>10.4g}" for name, value in outcome["losses"].items()]
    lines.append(f"{'':26}{'raw':>10}{'ema':>10}{'data':>10}")
    for name in ("spread", "nearest_mean_accuracy", "classifier_accuracy"):
        raw, ema = (outcome["collapse"][which][name] for which in ("raw", "ema"))
        if raw is not None:
            values = (np.mean(value) for value in (raw["samples"], ema["samples"], raw["data"]))
            lines.append(f"{name:26}" + "".join(f"{value:>10.4g}" for value in values))
    return "\n".join(lines + [f"note: {note}" for note in outcome["notes"]])
