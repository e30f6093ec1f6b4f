"""PyTorch's side of the bench: the peers on their device with our weights, compared with ours."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from gradalign_jax.types import Batch

try:
    import torch

    from launch.bench.torch_peer import authors, lean, models
except ImportError:
    torch = None


def device():
    """Return the peers' device: the card that JAX uses if PyTorch can use it, else the CPU."""
    return torch.device("cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu")


def layout(channels_last: bool):
    """Return PyTorch's constant for a memory layout."""
    return torch.channels_last if channels_last else torch.contiguous_format


def to_torch(array, channels_last: bool = False):
    """Return an array as a tensor on the peers' device; images become NCHW, in memory too unless `channels_last`."""
    tensor = torch.from_numpy(np.array(array))
    if tensor.ndim == 4:
        tensor = tensor.permute(0, 3, 1, 2).contiguous(memory_format=layout(channels_last))
    return tensor.to(device())


def place(network, channels_last: bool = False):
    """Move a network to the peers' device, in a memory layout."""
    return network.to(device(), memory_format=layout(channels_last))


def make_peer(experiment, variables, channels_last: bool = False):
    """Return the PyTorch network with our weights, in training mode."""
    return place(models.load_flax(experiment.peer(models), variables).train(), channels_last)


def style_of(column: str):
    """Return the module with the steps of a column: `authors`, or `lean` for all other columns."""
    return authors if column == "authors" else lean


def compiled_forward(network) -> Callable:
    """Return the network under torch.compile; without a card only its graph is captured, no code generated."""
    backend = "inductor" if device().type == "cuda" else "aot_eager"
    return torch.compile(network, dynamic=False, backend=backend)


def make_attack(style, network, experiment, steps: int, compiled: bool = False) -> Callable:
    """Return the attack of an experiment in a style, the module `authors` or `lean`."""
    options = {"forward": compiled_forward(network)} if compiled else {}
    settings = experiment.attack_loss, experiment.epsilon, experiment.step_size, steps
    return style.make_attack(network, *settings, **options)


def peer_step(
    experiment,
    variables,
    batch: Batch,
    style,
    channels_last: bool = False,
    *,
    method: str,
    destinations,
    steps: int,
    compiled: bool = False,
) -> Callable[[], Any]:
    """Return a PyTorch training step in a style, as a function without arguments.

    Args:
      experiment: the network and its settings.
      variables: our weights.
      batch: images and labels.
      style: the module `authors` or `lean`.
      channels_last: the memory layout.
      method: "baseline", "align" or "pgd".
      destinations: x' of each image and class `[B, K, ...]`; None: Δx is that of Spheres.
      steps: PGD steps.
      compiled: whether the passes of the attack are compiled.
    """
    peer = make_peer(experiment, variables, channels_last)
    image, label = to_torch(batch.image, channels_last), to_torch(batch.label).long()
    if destinations is not None:
        rows = torch.arange(len(label), device=device())
        by_class = torch.from_numpy(destinations).movedim(-1, 2).contiguous().to(device())

    def delta_x(image, label, target):
        if destinations is None:
            return image * torch.where(label == 0, 0.3, -0.3 / 1.3)[:, None]
        return by_class[rows, target] - image

    attack = make_attack(style, peer, experiment, steps, compiled)
    name, settings = experiment.peer_optimizer
    optimizer = style.optimizer(peer, name, **settings)
    options = {"delta_x": delta_x, "weight": experiment.weight, "attack": attack}
    step = style.make_step(peer, optimizer, method, **options)
    return lambda: step(image, label)


def peer_jacobian(experiment, variables, batch: Batch, style, channels_last: bool = False) -> Callable[[], Any]:
    """Return PyTorch's input Jacobian in a style, as a function without arguments."""
    peer = make_peer(experiment, variables, channels_last).eval()
    image = to_torch(batch.image, channels_last).requires_grad_(True)
    return lambda: style.input_jacobian(peer(image), image)


def under_autocast(side: Callable[[], Any]) -> Callable[[], Any]:
    """Return the side under bfloat16 autocast."""

    def run():
        with torch.autocast(device().type, dtype=torch.bfloat16):
            return side()

    return run


def wait() -> None:
    """Wait until the card is idle."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def faster_layout(make_side: Callable) -> Callable[[], Any]:
    """Return the side in the faster of two memory layouts, by the best of a few runs after a warm-up."""

    def seconds(side):
        side()
        times: list[float] = []
        while len(times) < 3 and sum(times) < 3:
            start = time.perf_counter()
            side()
            times.append(time.perf_counter() - start)
        return min(times)

    return min((make_side(channels_last=layout) for layout in (False, True)), key=seconds)


def check_agreement(experiment, variables, batch: Batch) -> str:
    """Return the largest differences of logits, input and parameter gradients, relative to the largest value.

    Evaluation mode, because float32 gradients through training-mode batch norm are dominated by rounding on both
    sides (tests/test_torch_parity.py compares them in float64).
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
    """Return max|a - b| / max|b|."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / np.abs(b).max())
