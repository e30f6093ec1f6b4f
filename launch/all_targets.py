"""The alignment penalty with Δx to the closest class against that to all classes: `python launch/all_targets.py`.

Perceptrons on MNIST, of equal seed and number of steps, small enough for a CPU. Δx points to the nearest training image
of a class; alignment is measured with other training images than those of the penalty, and with class means.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, too

import gradalign_jax
from gradalign_jax import data, models, training
from gradalign_jax.deltax import centroid, nearest
from gradalign_jax.types import Batch

RUNS = {  # method, targets and λ_α
    "baseline": ("baseline", "closest", 0.0),
    "closest": ("align", "closest", 0.3),
    "all": ("align", "all", 0.3),
    "closest-9": ("align", "closest", 0.3 * 9),
    "all-mean": ("align", "all", 0.3 / 9),
}
EPSILONS = (0.04, 0.06, 0.1, 0.14, 0.2, 0.3, 0.4, 0.6, 0.8)
_LAYOUT = "{:10}{:>8}{:>12}{:>12}{:>14}{:>14}{:>10}"


def main() -> None:
    """Train and measure the chosen runs, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python launch/all_targets.py", description=__doc__)
    parser.add_argument("--run", action="append", choices=RUNS, help="repeatable; default: all of them")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of 64 images (1000)")
    parser.add_argument("--images", type=int, default=500, help="number of test images (500)")
    arguments = parser.parse_args()
    splits = data.load("mnist").splits
    train, test = splits["train"], splits["test"]
    image = np.asarray(data.to_float(jnp.asarray(train.image)))
    parts = [(image[some], train.label[some]) for some in (slice(0, 5000), slice(5000, 10_000))]
    print(_LAYOUT.format("run", "acc. %", "ε50% L∞", "ᾱ nearest", "ᾱ centroid", "ᾱ_x", "ms/step"))
    for name in arguments.run or RUNS:
        method, targets, weight = RUNS[name]
        inputs = training.StepInputs(weight=weight, delta_x=nearest.make(*parts[0]) if method == "align" else None)
        logits_fn, seconds = trained(image, train.label, method, targets, inputs, arguments.steps)
        result = gradalign_jax.evaluate(
            logits_fn,
            data.to_float(jnp.asarray(test.image[: arguments.images])),
            test.label[: arguments.images],
            epsilons=EPSILONS,
            pgd=gradalign_jax.PGD(("linf",), loss="margin"),
            square=None,
            delta_x=nearest.make(*parts[1]),
            directions=gradalign_jax.Directions(("plain",), {"centroid": centroid.make(image, train.label)}),
        )
        numbers = 100 * result["accuracy"], result["epsilon_half"]["pgd_linf"], result["alpha_delta_x"]
        numbers += result["directions"]["alignment"]["plain"]["centroid"], result["alpha_x"], 1e3 * seconds
        print(_LAYOUT.format(name, *(f"{number:.3g}" for number in numbers)), flush=True)


def trained(image: np.ndarray, label: np.ndarray, method: str, targets: str, inputs: training.StepInputs, steps: int):
    """Train a perceptron; return it as a function of images, and the processor seconds of a step."""
    network = models.create("mlp", num_classes=10, binary=False, hidden=(256, 256), input_size=image[0].size)

    def apply(variables, image, train=False):
        return network.apply(variables, image.reshape(len(image), -1), train)

    classifier, optimizer = network._replace(apply=apply, prepare=None), training.adam(1e-3, 0.9, 0.999)
    step = training.make_step(classifier, optimizer, method, targets=targets)
    state = training.create_state(classifier, optimizer, jax.random.key(0))
    order = np.random.default_rng(0).integers(0, len(label), (steps, 64))

    @jax.jit
    def chunk(state, image, label, inputs):
        def one(state, batch):
            return step(state, Batch(*batch, jnp.zeros(64, jnp.int32)), None, inputs)

        return jax.lax.scan(one, state, (image, label))

    seconds = []
    for some in np.split(order, 20):
        started = time.process_time()
        state, _ = jax.block_until_ready(chunk(state, image[some], label[some], inputs))
        seconds.append((time.process_time() - started) / len(some))
    variables = state.variables
    return lambda image: apply(variables, image)[0], float(np.median(seconds))


if __name__ == "__main__":
    main()
