"""What bench.py measures: the training steps of each experiment, ours and PyTorch's, with equal weights.

An item is built with its agreement checked and our program compiled, so that only steps are timed.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradalign_jax import alignment, training
from gradalign_jax.attacks import pgd
from gradalign_jax.models import mlp, resnet
from gradalign_jax.types import Batch, Classifier
from launch import bench_projection

try:
    import torch

    from launch.torch_peer import authors, lean, models
except ImportError:
    torch = None

# Multiply-accumulates of the Spheres MLP for one image: the whole forward pass, and without its first layer.
_MLP_FORWARD, _MLP_ABOVE_FIRST = 1_501_000, 1_001_000


class Experiment(NamedTuple):
    """A data set's network, batch and training settings, as the paper's code has them."""

    classifier: Classifier
    peer: Callable  # models -> the same network in PyTorch
    image_shape: tuple[int, ...]
    classes: int
    optimizer: optax.GradientTransformation
    peer_optimizer: tuple[str, dict]
    weight: float
    attack_loss: str
    epsilon: float
    step_size: float


class Item(NamedTuple):
    """One measurement: `sides` are functions that run one step, ours `steps` of them, and wait for it."""

    name: str
    sides: dict[str, Callable[[], Any]]
    compile_seconds: float
    agreement: str | None
    flops: float | None
    parts: int = 1  # what one step of any side is divided by: times and flops are for one part
    steps: int = 1


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
STEPS = {"spheres": 50, "mnist": 10, "cifar": 4}  # of ours in one program; a training run has up to 500
METHODS = {"plain": "baseline", "align": "align", "pgd": "pgd"}
ITEMS = [f"{name}_{method}" for name in EXPERIMENTS for method in METHODS] + ["mnist_jacobian"]
ITEMS += [f"projection_{form}" for form in bench_projection.FORMS]


def build(name: str, attack_steps: int = 40, attack_dtype: str = "bfloat16") -> Item:
    """Builds one of ITEMS. Without PyTorch only our side is there.

    attack_dtype: of the kernels that our attack sees; PyTorch's sees float32.
    """
    data, method = name.split("_")
    if data == "projection":
        return build_projection(name, method)
    experiment = EXPERIMENTS[data]
    batch, destinations = make_batch(data, experiment)
    variables = experiment.classifier.init(jax.random.key(0))
    agreement = check_agreement(experiment, variables, batch) if torch else None
    sides, steps = {}, 1 if method == "jacobian" else STEPS[data]
    if method == "jacobian":
        sides["ours"], seconds = our_jacobian(experiment, variables, batch)
        peer_side = peer_jacobian
    else:
        options = {"steps": steps, "attack_steps": attack_steps, "attack_dtype": attack_dtype}
        sides["ours"], seconds = our_step(experiment, variables, batch, METHODS[method], destinations, **options)
        peer_side = partial(peer_step, method=METHODS[method], destinations=destinations, steps=attack_steps)
    if torch:
        sides["authors"] = peer_side(experiment, variables, batch, authors)
        lean_side = partial(peer_side, experiment, variables, batch, lean)
        sides["lean"] = faster_layout(lean_side) if batch.image.ndim == 4 else lean_side()
    flops = spheres_flops(method, attack_steps) if data == "spheres" else None
    title = f"{name} (k={attack_steps}, {attack_dtype})" if method == "pgd" else name
    return Item(title, sides, seconds, agreement, flops, steps=steps)


def our_program(step: Callable, state, arguments: tuple, steps: int) -> tuple[Callable[[], None], float]:
    """Runs `steps` training steps as one program, as a training run does; and seconds to trace and compile it.

    The memory of a program's temporaries is the system's again when it ends: a step on its own is slower on a CPU, by
    half for a convolutional network, for the pages that it has to be given anew.
    """

    def many(state, *arguments):
        return jax.lax.scan(lambda state, _: step(state, *arguments), state, length=steps)

    start = time.perf_counter()
    compiled = jax.jit(many, donate_argnums=0).lower(state, *arguments).compile()
    seconds = time.perf_counter() - start

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, *arguments)
        jax.block_until_ready((state, metrics))

    return run, seconds


def build_projection(name: str, form: str) -> Item:
    """The projection in one form; a part is one step of one pair of image and class."""
    ours, seconds = bench_projection.our_side(form)
    sides, agreement = {"ours": ours}, None
    if torch:
        sides["authors"] = bench_projection.peer_side(frozen=False)
        sides["lean"] = faster_layout(partial(bench_projection.peer_side, frozen=True))
        agreement = f"z {relative_difference(ours(), sides['authors']()):.0e}"
    parts = bench_projection.BATCH * bench_projection.STEPS
    return Item(name, sides, seconds, agreement, bench_projection.FLOPS, parts)


def make_batch(data: str, experiment: Experiment) -> tuple[Batch, np.ndarray | None]:
    """A batch of the experiment's shape, and for images the cached x' of every image and class."""
    rng = np.random.default_rng(0)
    shape, count = experiment.image_shape, experiment.image_shape[0]
    label = rng.integers(experiment.classes, size=count).astype(np.int32)
    if data == "spheres":
        image = rng.normal(size=shape)
        image *= (1 + 0.3 * label[:, None]) / np.linalg.norm(image, axis=1, keepdims=True)
        destinations = None
    else:
        image = rng.uniform(-1, 1, shape)
        destinations = rng.uniform(-1, 1, (count, experiment.classes, *shape[1:])).astype(np.float32)
    batch = Batch(jnp.asarray(image, jnp.float32), jnp.asarray(label), jnp.arange(count, dtype=jnp.int32))
    return batch, destinations


def our_step(
    experiment: Experiment,
    variables,
    batch: Batch,
    method: str,
    destinations,
    steps: int,
    attack_steps: int,
    attack_dtype: str,
):
    """Our training steps, their state donated, and the seconds it took to trace and compile them."""

    def delta_x(image, label, target, index):
        if destinations is None:
            return image * jnp.where(label == 0, 0.3, -0.3 / 1.3)[:, None]
        return jnp.asarray(destinations)[index, target] - image

    attack = pgd.make("linf", steps=attack_steps, loss=experiment.attack_loss)
    classifier, optimizer = experiment.classifier, experiment.optimizer
    options = {"delta_x": delta_x, "attack": attack, "attack_dtype": jnp.dtype(attack_dtype)}
    step = training.make_step(classifier, optimizer, method, **options)
    # Donation frees the arrays that are handed in, and others still read `variables`.
    variables = jax.tree.map(jnp.copy, variables)
    state = training.TrainState(variables, optimizer.init(variables["params"]), jnp.zeros((), jnp.int32))
    keys = jax.random.split(jax.random.key(1), len(batch.label))
    settings = {"weight": experiment.weight, "epsilon": experiment.epsilon, "step_size": experiment.step_size}
    settings = jax.tree.map(jnp.float32, settings)
    return our_program(step, state, (batch, keys, settings), steps)


def our_jacobian(experiment: Experiment, variables, batch: Batch):
    """Our compiled input Jacobian in evaluation mode, and the seconds it took to trace and compile."""

    def jacobian(variables, image):
        return alignment.input_jacobian(lambda x: experiment.classifier.apply(variables, x)[0], image)

    start = time.perf_counter()
    compiled = jax.jit(jacobian).lower(variables, batch.image).compile()
    seconds = time.perf_counter() - start
    return lambda: jax.block_until_ready(compiled(variables, batch.image)), seconds


def to_torch(array, channels_last: bool = False):
    """An array as a tensor; images become NCHW, in memory as well unless `channels_last`."""
    tensor = torch.from_numpy(np.array(array))
    if tensor.ndim == 4:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        tensor = tensor.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    return tensor


def make_peer(experiment: Experiment, variables, channels_last: bool = False):
    """The PyTorch network with our weights, in training mode."""
    peer = models.load_flax(experiment.peer(models), variables).train()
    return peer.to(memory_format=torch.channels_last) if channels_last else peer


def peer_step(
    experiment: Experiment,
    variables,
    batch: Batch,
    style,
    channels_last=False,
    *,
    method,
    destinations,
    steps,
):
    """One PyTorch training step in a style, as a function without arguments."""
    peer = make_peer(experiment, variables, channels_last)
    image, label = to_torch(batch.image, channels_last), to_torch(batch.label).long()
    if destinations is not None:
        rows = torch.arange(len(label))
        by_class = torch.from_numpy(destinations).movedim(-1, 2).contiguous()

    def delta_x(image, label, target):
        if destinations is None:
            return image * torch.where(label == 0, 0.3, -0.3 / 1.3)[:, None]
        return by_class[rows, target] - image

    attack = style.make_attack(peer, experiment.attack_loss, experiment.epsilon, experiment.step_size, steps)
    name, settings = experiment.peer_optimizer
    optimizer = style.optimizer(peer, name, **settings)
    options = {"delta_x": delta_x, "weight": experiment.weight, "attack": attack}
    step = style.make_step(peer, optimizer, method, **options)
    return lambda: step(image, label)


def peer_jacobian(experiment: Experiment, variables, batch: Batch, style, channels_last=False):
    """PyTorch's input Jacobian in a style, as a function without arguments."""
    peer = make_peer(experiment, variables, channels_last).eval()
    image = to_torch(batch.image, channels_last).requires_grad_(True)
    return lambda: style.input_jacobian(peer(image), image)


def faster_layout(make_side: Callable) -> Callable[[], Any]:
    """The faster of two memory layouts, by the best of a few runs of each after a warm-up."""

    def seconds(side):
        side()
        times: list[float] = []
        while len(times) < 3 and sum(times) < 3:
            start = time.perf_counter()
            side()
            times.append(time.perf_counter() - start)
        return min(times)

    return min((make_side(channels_last=layout) for layout in (False, True)), key=seconds)


def check_agreement(experiment: Experiment, variables, batch: Batch) -> str:
    """Largest differences of logits, input gradient and parameter gradients, relative to the largest value.

    In evaluation mode: float32 gradients through training-mode batch norm are dominated by rounding on either
    side (tests/test_torch_parity.py compares them in float64).
    """

    @jax.jit
    def ours(params, image):
        def loss_fn(params, image):
            values = {"params": params, "batch_stats": variables["batch_stats"]}
            logits, _ = experiment.classifier.apply(values, image)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch.label).mean(), logits

        (_, logits), gradients = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)(params, image)
        return logits, *gradients

    logits, gradients, image_gradient = ours(variables["params"], batch.image)
    peer = make_peer(experiment, variables).eval()
    image = to_torch(batch.image).requires_grad_(True)
    output = peer(image)
    if output.ndim == 1:
        output = torch.stack([-output / 2, output / 2], 1)
    torch.nn.functional.cross_entropy(output, to_torch(batch.label).long()).backward()
    image_difference = relative_difference(to_torch(image_gradient), image.grad)
    peer_gradients = {name: value.grad for name, value in peer.named_parameters()}
    differences = [
        relative_difference(value, peer_gradients[name]) for name, value in models.flax_to_torch(gradients).items()
    ]
    logit_difference = relative_difference(logits, output.detach())
    return f"logits {logit_difference:.0e}, dx {image_difference:.0e}, dw {max(differences):.0e}"


def relative_difference(a, b) -> float:
    """max|a - b| / max|b|."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / np.abs(b).max())


def spheres_flops(method: str, attack_steps: int) -> float:
    """Operations that a step on the MLP needs: 2 per multiply-accumulate, matrix products alone."""
    forward, above = _MLP_FORWARD, _MLP_ABOVE_FIRST
    plain = forward + above + forward  # forward, gradients of the hidden units, gradients of the weights
    # Alignment: the input gradient, a backward pass through that, and its gradients of the weights.
    extra = {"plain": 0, "align": 3 * forward, "pgd": attack_steps * 2 * forward}
    return 2.0 * EXPERIMENTS["spheres"].image_shape[0] * (plain + extra[method])
