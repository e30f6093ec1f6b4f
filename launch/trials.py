"""Trials behind two decisions: `python launch/trials.py conv`, `python launch/trials.py repeats DIR... --epsilon=E`.

conv      milliseconds per step of PGD on a network of six convolutions, by XLA's convolution and by ours
repeats   how soon the iterates of PGD L∞ repeat, at a step size of 2 ε: all later ones are then known. DIR is a
          finished classifier run
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, too

from gradalign_jax import data
from gradalign_jax.attacks import pgd
from gradalign_jax.attacks.ball import BALLS
from gradalign_jax.attacks.losses import LOSSES
from gradalign_jax.data import pipeline
from gradalign_jax.experiment import artifacts, batches
from gradalign_jax.experiment.subject import create_classifier
from gradalign_jax.ops.convolution import conv
from gradalign_jax.storage import weights

LAYERS = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1))  # channels and stride of each 3x3 convolution
STEPS = 40


def main() -> None:
    """Print the table of the chosen trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trials = parser.add_subparsers(dest="trial", required=True)
    trials.add_parser("conv")
    repeats = trials.add_parser("repeats")
    repeats.add_argument("directory", nargs="+", type=Path, metavar="DIR")
    repeats.add_argument("--epsilon", type=float, action="append", required=True, help="repeatable")
    repeats.add_argument("--images", type=int, default=32, help="test images (%(default)s)")
    options = parser.parse_args()
    if options.trial == "conv":
        print("| images | XLA | ours | ratio |\n|---|---|---|---|")
        for shape in ((32, 32, 3), (28, 28, 1)):
            xla, ours = milliseconds(shape)
            print(f"| {' × '.join(map(str, shape))} | {xla:.0f} | {ours:.0f} | {xla / ours:.1f} |", flush=True)
        return
    print("| run | images | ε | share that repeats | mean steps until then |\n|---|---|---|---|---|")
    for directory in options.directory:
        for epsilon, first in first_repeats(directory, options.epsilon, options.images):
            row = f"{directory.name} | {len(first)} | {epsilon:g} | {np.mean(first <= STEPS):.2f}"
            print(f"| {row} | {np.minimum(first, STEPS).mean():.1f} |", flush=True)


def milliseconds(shape: tuple[int, ...], batch: int = 64, steps: int = 10, rounds: int = 5) -> tuple[float, float]:
    """Return the median time of a step of PGD by XLA's convolution and by ours; rounds are interleaved."""
    random, inputs, kernels = np.random.default_rng(0), shape[-1], []
    for outputs, _ in LAYERS:
        kernel = random.normal(size=(3, 3, inputs, outputs)) * np.sqrt(2 / 9 / inputs)
        kernels.append(jnp.asarray(kernel, jnp.float32))
        inputs = outputs
    head = jnp.asarray(random.normal(size=(inputs, 10)), jnp.float32)
    image = jnp.asarray(random.uniform(-1, 1, (batch, *shape)), jnp.float32)
    label = jnp.asarray(random.integers(0, 10, batch))

    def xla(x, kernel, stride, padding):
        pads = [(padding, padding)] * 2
        return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def program(convolve):
        def logits_fn(x):
            for kernel, (_, stride) in zip(kernels, LAYERS, strict=True):
                x = jax.nn.relu(convolve(x, kernel, stride, 1))
            return x.mean((1, 2)) @ head

        attack = pgd.make(steps=steps, random_start=False)
        return jax.jit(lambda x: attack(logits_fn, jax.random.key(0), x, label, 0.1, 0.02)).lower(image).compile()

    programs, times = [program(xla), program(conv)], ([], [])
    for _ in range(rounds):
        for run, found in zip(programs, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run(image))
            found.append((time.perf_counter() - start) / steps * 1e3)
    return float(np.median(times[0])), float(np.median(times[1]))


def first_repeats(directory: Path, epsilons: list[float], images: int):
    """Yield each ε, and the first step of each image `[N]` whose iterate equals the last or the one before."""
    variables, described = weights.read(directory / artifacts.CLASSIFIER)
    config = ConfigDict(described["config"])
    dataset = batches.load(config)
    classifier = create_classifier(config, dataset)
    split = batches.split(config, dataset, "test", jax.random.key(0))
    batch = pipeline.gather(data.Split(*(jnp.asarray(rows[:images]) for rows in split)), jnp.arange(images))
    loss, ball = LOSSES[config.attack.loss], BALLS["linf"]

    @jax.jit
    def repeated(epsilon):
        ascend = jax.grad(lambda x: loss(classifier.apply(variables, x)[0], batch.label).sum())

        def step(carry, _):
            x, before = carry
            delta = ball.project(x + 2 * epsilon * ball.steepest_ascent(ascend(x)) - batch.image, epsilon)
            after, axes = jnp.clip(batch.image + delta, -1, 1), tuple(range(1, x.ndim))
            return (after, x), jnp.all(after == x, axes) | jnp.all(after == before, axes)

        noise = jax.random.uniform(jax.random.key(0), batch.image.shape, minval=-1, maxval=1)
        start = jnp.clip(batch.image + epsilon * noise, -1, 1)
        return lax.scan(step, (start, jnp.full_like(start, jnp.inf)), length=STEPS)[1]

    for epsilon in epsilons:
        found = np.asarray(repeated(epsilon))
        yield epsilon, np.where(found.any(0), found.argmax(0) + 1, STEPS + 1)


if __name__ == "__main__":
    main()
