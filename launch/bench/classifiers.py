"""The classifiers' items: training steps of each experiment and the input Jacobian, ours and PyTorch's.

Both sides have equal weights. Building an item checks their agreement and compiles our program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from gradalign_jax import alignment, training
from gradalign_jax.attacks import pgd
from gradalign_jax.models import mlp, resnet
from gradalign_jax.types import Batch, Classifier
from launch.bench import peers
from launch.bench import program as bench_program
from launch.bench.interleaved import Item
from launch.bench.peers import torch
from launch.bench.program import Program

# Multiply-accumulates of the Spheres MLP for one image: the whole forward pass, and without its first layer.
_MLP_FORWARD, _MLP_ABOVE_FIRST = 1_501_000, 1_001_000


class Experiment(NamedTuple):
    """The network, batch and training settings of a data set, as in the paper's code.

    Attributes:
      peer: the same network in PyTorch, from the module torch_peer.models.
      image_shape: shape of a batch of images.
      peer_optimizer: name and settings of the same optimizer in PyTorch.
      weight: λ_α.
    """

    classifier: Classifier
    peer: Callable
    image_shape: tuple[int, ...]
    classes: int
    optimizer: optax.GradientTransformation
    peer_optimizer: tuple[str, dict]
    weight: float
    attack_loss: str
    epsilon: float
    step_size: float


EXPERIMENTS = {
    "spheres": Experiment(
        mlp.create(2),
        lambda m: m.MLP(),
        (50, 500),
        2,
        training.adam(1e-4, b1=0.0, b2=0.9),
        ("adam", {"lr": 1e-4, "betas": (0.0, 0.9)}),
        weight=0.1,
        attack_loss="margin",
        epsilon=0.005,
        step_size=0.002,
    ),
    "mnist": Experiment(
        resnet.create(10, channels=1, stem="imagenet", frozen_norm=True),
        lambda m: m.ResNet18(10, "imagenet", True),
        (64, 28, 28, 1),
        10,
        optax.adam(1e-4, b1=0.5, b2=0.999),
        ("adam", {"lr": 1e-4, "betas": (0.5, 0.999)}),
        weight=0.3,
        attack_loss="cross_entropy",
        epsilon=0.3,
        step_size=0.02,
    ),
    "cifar": Experiment(
        resnet.create(10, channels=3, stem="cifar", frozen_norm=False),
        lambda m: m.ResNet18(10, "cifar", False),
        (32, 32, 32, 3),
        10,
        optax.sgd(1e-2, momentum=0.9),
        ("sgd", {"lr": 1e-2, "momentum": 0.9}),
        weight=0.3,
        attack_loss="cross_entropy",
        epsilon=0.01,
        step_size=0.02,
    ),
}
TRAINING = "tf32"  # precision of training, the configs' default
STEPS = {"spheres": 50, "mnist": 10, "cifar": 4}  # steps of ours in one program; a training run has up to 500
METHODS = {"plain": "baseline", "align": "align", "pgd": "pgd"}
ITEMS = [*(f"{name}_{method}" for name in EXPERIMENTS for method in METHODS), "mnist_jacobian"]


def build(name: str, attack_steps: int = 40, attack_precision: str = "bfloat16") -> Item:
    """Build one of ITEMS, without PyTorch's sides if it is not installed.

    Args:
      name: which one.
      attack_steps: PGD steps.
      attack_precision: of our attack; PyTorch's is float32.
    """
    data, method = name.split("_")
    experiment, steps = EXPERIMENTS[data], 1 if method == "jacobian" else STEPS[data]
    given = inputs(data, experiment)
    program = our_program(experiment, *given, method, steps, attack_steps, attack_precision)
    ours, seconds = bench_program.ready(program)
    sides, agreement = {"ours": ours}, None
    if torch:
        agreement = peers.check_agreement(experiment, *given[:2])
        sides["authors"] = peer_side(experiment, *given, method, attack_steps, "authors")
        lean_side = partial(peer_side, experiment, *given, method, attack_steps, "lean")
        image = given[1].image
        sides["lean"] = peers.faster_layout(lean_side) if image.ndim == 4 else lean_side()
    flops = spheres_flops(method, attack_steps) if data == "spheres" else None
    title = f"{name} (k={attack_steps}, {attack_precision})" if method == "pgd" else name
    return Item(title, sides, seconds, agreement, flops, steps=steps)


def inputs(data: str, experiment: Experiment) -> tuple[Any, Batch, np.ndarray | None]:
    """Return variables, a batch, and for images the cached x' of every image and class `[B, K, H, W, C]`."""
    rng = np.random.default_rng(0)
    shape, count = experiment.image_shape, experiment.image_shape[0]
    label = rng.integers(experiment.classes, size=count)
    if data == "spheres":
        image = rng.normal(size=shape)
        image *= (1 + 0.3 * label[:, None]) / np.linalg.norm(image, axis=1, keepdims=True)
        destinations = None
    else:
        image = rng.uniform(-1, 1, shape)
        destinations = rng.uniform(-1, 1, (count, experiment.classes, *shape[1:])).astype(np.float32)
    return bench_program.draw(experiment.classifier.init), bench_program.batch_of(image, label), destinations


def our_program(
    experiment: Experiment,
    variables: Any,
    batch: Batch,
    destinations: np.ndarray | None,
    method: str,
    steps: int,
    attack_steps: int,
    attack_precision: str,
) -> Program:
    """Return our training steps, or the input Jacobian in evaluation mode."""
    classifier, optimizer = experiment.classifier, experiment.optimizer

    def jacobian(variables, image):
        return alignment.input_jacobian(lambda x: classifier.apply(variables, x)[0], image)

    def delta_x(destinations, image, label, target, index):
        if destinations is None:
            return image * jnp.where(label == 0, 0.3, -0.3 / 1.3)[:, None]
        return destinations[index, target] - image

    if method == "jacobian":
        return Program(jacobian, (variables, batch.image))
    moments = bench_program.zeros(optimizer.init, variables["params"])
    state = training.TrainState(variables, moments, np.zeros((), np.int32))
    attack = pgd.make("linf", steps=attack_steps, loss=experiment.attack_loss)
    precisions = {"attack_precision": attack_precision, "training_precision": TRAINING}
    step = training.make_step(classifier, optimizer, METHODS[method], attack=attack, **precisions)
    sizes = {name: np.float32(getattr(experiment, name)) for name in ("weight", "epsilon", "step_size")}
    inputs = training.StepInputs(**sizes, delta_x=Partial(delta_x, destinations if method == "align" else None))
    rest = batch, bench_program.keys(len(batch.label)), inputs
    return bench_program.repeated(step, state, rest, steps)


def peer_side(
    experiment: Experiment,
    variables: Any,
    batch: Batch,
    destinations: np.ndarray | None,
    method: str,
    attack_steps: int,
    column: str,
    channels_last: bool = False,
) -> Callable[[], Any]:
    """Return PyTorch's side of a column: "authors", "lean", or "compiled" (lean with a compiled attack)."""
    style = peers.style_of(column)
    if method == "jacobian":
        return peers.peer_jacobian(experiment, variables, batch, style, channels_last)
    options = {"method": METHODS[method], "destinations": destinations, "steps": attack_steps}
    options["compiled"] = column == "compiled"
    return peers.peer_step(experiment, variables, batch, style, channels_last, **options)


def spheres_flops(method: str, attack_steps: int, count: int = 50) -> float:
    """Return the operations that a step on the MLP needs: matrix products only, 2 per multiply-accumulate."""
    forward, above = _MLP_FORWARD, _MLP_ABOVE_FIRST
    plain = forward + above + forward  # forward, gradients of the hidden units, gradients of the weights
    # Alignment: the input gradient, a backward pass through that, and its gradients of the weights.
    extra = {"plain": 0, "align": 3 * forward, "pgd": attack_steps * 2 * forward}
    return 2.0 * count * (plain + extra[method])
