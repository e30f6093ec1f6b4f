"""Time and memory as batch, steps, classes, images, ε and devices grow: `python launch/growth.py --output=growth.png`.

Prints a table and draws it. Times are processor time, the least of three calls, divided by the work; memory is the
temporary memory of the compiled program on one device. "Compiled again" counts the programs that are compiled after the
first call, over all ε and all parts of the images. The classifier is a perceptron with the size of Spheres' (500
numbers, two hidden layers of 1,000).
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, too

from gradalign_jax import alignment, data, models, parallel, training
from gradalign_jax.attacks import pgd
from gradalign_jax.evaluation.options import PGD, Attacks
from gradalign_jax.evaluation.programs import Evaluation, build
from gradalign_jax.types import Batch, Classifier

SIZE, HIDDEN = 500, (1000, 1000)
DEVICES = (1, 2, 4)
CLASSES = (2, 10, 30, 100, 300, 1000)
compiled: list[str] = []  # one entry for each program that is compiled


class Point(NamedTuple):
    """One measurement: `work` is the factor by which the time may grow; `again` the programs compiled too often."""

    axis: str
    value: float
    work: float
    seconds: float
    temporary: int | None
    again: int = 0


def main() -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="PNG")
    output = parser.parse_args().output
    jax.config.update("jax_num_cpu_devices", DEVICES[-1])
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    print("| axis | value | work | ms | ms / work | temporary MB | compiled again |\n|---|---|---|---|---|---|---|")
    points = []
    for measure in (batches, steps, classes, images, epsilons, devices):
        for point in measure():
            points.append(point)
            memory = "–" if point.temporary is None else f"{point.temporary / 1e6:.1f}"
            numbers = f"{1e3 * point.seconds:.1f} | {1e3 * point.seconds / point.work:.2f} | {memory} | {point.again}"
            print(f"| {point.axis} | {point.value:g} | {point.work:g} | {numbers} |", flush=True)
    draw(points, output)


def batches() -> Iterator[Point]:
    """Yield a step of PGD training (10 steps of PGD) for growing batches."""
    for size in (25, 50, 100, 200, 400):
        yield Point("batch", size, size / 25, *train(size, 10))


def steps() -> Iterator[Point]:
    """Yield a step of PGD training for growing numbers of PGD steps."""
    for count in (5, 10, 20, 40, 80):
        # A step of PGD is a forward pass and a backward pass to the image, the training step itself three thirds.
        yield Point("PGD steps", count, (2 * count + 3) / 13, *train(50, count))


def classes() -> Iterator[Point]:
    """Yield the alignments of 50 images for growing numbers of classes."""
    first = 0.0
    for count in CLASSES:
        classifier, variables = network(count)
        batch = examples(50, count)

        def measure(variables: Any, batch: Batch, classifier: Classifier = classifier) -> Any:
            return alignment.measure_with_theory(lambda image: classifier.apply(variables, image)[0], None, *batch)

        # A forward pass, and a backward pass for each class, through a last layer that grows with them.
        work = (1 + count) * (SIZE * HIDDEN[0] + HIDDEN[0] * HIDDEN[1] + HIDDEN[1] * count)
        first = work if count == CLASSES[0] else first
        yield Point("classes", count, work / first, *program(measure, variables, batch))


def images() -> Iterator[Point]:
    """Yield the evaluation of growing numbers of images, 100 in a block."""
    for count in (500, 1000, 2000, 4000):
        evaluation, variables = evaluator(count, 1)
        attack = partial(evaluation.attacked, variables, "pgd_linf", 0.01, 0.002)
        attack(part=range(1))
        before = len(compiled)
        seconds, again = least(attack), len(compiled) - before
        yield Point("images", count, count / 500, seconds, temporary(count), again)


def epsilons() -> Iterator[Point]:
    """Yield the evaluation of 500 images for growing ε."""
    evaluation, variables = evaluator(500, 1)
    evaluation.attacked(variables, "pgd_linf", 0.001, 0.0002)
    memory = temporary(500)
    before = len(compiled)
    for epsilon in (0.001, 0.01, 0.1, 1):
        seconds = least(partial(evaluation.attacked, variables, "pgd_linf", epsilon, epsilon / 5))
        yield Point("ε", epsilon, 1, seconds, memory, len(compiled) - before)


def devices() -> Iterator[Point]:
    """Yield the evaluation of 800 images for growing numbers of devices, forced on this processor."""
    for count in DEVICES:
        evaluation, variables = evaluator(800, count)
        attack = partial(evaluation.attacked, variables, "pgd_linf", 0.01, 0.002)
        attack()
        before = len(compiled)
        seconds, again = least(attack), len(compiled) - before
        yield Point("devices", count, 1, seconds, temporary(800, count), again)


def network(classes: int) -> tuple[Classifier, Any]:
    """Return a classifier and its weights."""
    classifier = models.create("mlp", num_classes=classes, binary=False, hidden=HIDDEN, input_size=SIZE)
    return classifier, classifier.init(jax.random.key(0))


def examples(count: int, classes: int = 2) -> Batch:
    """Return random images with labels and indices."""
    random = np.random.default_rng(0)
    image = jnp.asarray(random.uniform(-1, 1, (count, SIZE)), jnp.float32)
    return Batch(image, jnp.asarray(random.integers(0, classes, count), jnp.int32), jnp.arange(count))


def train(batch: int, steps: int) -> tuple[float, int]:
    """Return seconds and temporary memory of a step of PGD training."""
    classifier, optimizer = network(2)[0], optax.adam(1e-3)
    state = training.create_state(classifier, optimizer, jax.random.key(0))
    step = training.make_step(classifier, optimizer, "pgd", attack=pgd.make("linf", steps=steps))
    inputs = training.StepInputs(epsilon=jnp.float32(0.01), step_size=jnp.float32(0.002))
    return program(step, state, examples(batch), jax.random.split(jax.random.key(0), batch), inputs)


def evaluator(images: int, count: int) -> tuple[Evaluation, Any]:
    """Return an evaluation by PGD on some devices, and the weights on them."""
    classifier, variables = network(2)
    split = data.Split(*map(np.asarray, examples(images)))
    on, attacks = parallel.devices(count, 0), Attacks((0.01,), PGD(("linf",), steps=10))
    evaluation = build(classifier, split, attacks, on=on, block=100, key=jax.random.key(0), delta_x=None)
    return evaluation, parallel.replicate(variables, on)


def temporary(images: int, count: int = 1) -> int:
    """Return the temporary memory of the program of `evaluator`."""
    with parallel.rehearsal(jax.devices()[:count]) as caught:
        evaluation, variables = evaluator(images, count)
        evaluation.attacked(variables, "pgd_linf", 0.01, 0.002)
    return caught.traced.lower().compile().memory_analysis().temp_size_in_bytes


def program(fn: Callable, *arguments: Any) -> tuple[float, int]:
    """Compile a function; return the seconds of a call and the temporary memory."""
    call = jax.jit(fn).lower(*arguments).compile()
    return least(lambda: jax.block_until_ready(call(*arguments))), call.memory_analysis().temp_size_in_bytes


def least(call: Callable[[], Any], rounds: int = 3) -> float:
    """Return the least processor time of some calls, after one that is not counted."""
    call()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def draw(points: list[Point], output: Path) -> None:
    """Draw time and temporary memory over each axis; dashed: growth in proportion to the work."""
    axes = list(dict.fromkeys(point.axis for point in points))
    figure, panels = plt.subplots(1, len(axes), figsize=(2 * len(axes), 2.6), sharey=True, layout="constrained")
    for panel, axis in zip(panels, axes, strict=True):
        own = [point for point in points if point.axis == axis]
        values = [point.value for point in own]
        panel.plot(values, [1e3 * point.seconds for point in own], "o-", markersize=3, label="ms")
        panel.plot(values, [(point.temporary or 0) / 1e6 for point in own], "s-", markersize=3, label="temporary MB")
        work = [1e3 * own[0].seconds * point.work / own[0].work for point in own]
        panel.plot(values, work, "--", color="gray", linewidth=0.8, label="work")
        panel.set(xscale="log", yscale="log", xlabel=axis)
        panel.set_xticks(values, [f"{value:g}" for value in values], fontsize=7)
        panel.minorticks_off()
    panels[0].legend(frameon=False, fontsize=7)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main()
