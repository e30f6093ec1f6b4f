"""The multilayer perceptron of the Spheres experiments."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from gradalign_jax.models.layers import Linear
from gradalign_jax.ops import platform
from gradalign_jax.ops.matmul import product
from gradalign_jax.types import Array, Classifier, LogitsFn, Variables, binary_logits


class MLP(nn.Module):
    """Linear, ReLU, frozen batch norm for each hidden layer, then a linear layer.

    The batch norm comes after the ReLU and never uses the batch's statistics: they stay at mean 0 and variance 1, so
    that it is an affine map per unit with trainable weight and bias.
    """

    outputs: int
    hidden: Sequence[int]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map `[B, features]` to `[B, outputs]`."""
        for features in self.hidden:
            x = nn.relu(Linear(features)(x, train))
            x = nn.BatchNorm(use_running_average=True, epsilon=1e-5)(x)
        return Linear(self.outputs)(x, train)


def create(
    num_classes: int = 2, binary: bool = True, hidden: Sequence[int] = (1000, 1000), input_size: int = 500
) -> Classifier:
    """Build the classifier of points `[B, input_size]` (1,507,001 parameters by default).

    Reference: the authors' Spheres classifier; paper, "Spheres".

    Args:
      num_classes: K.
      binary: one output s, returned as `binary_logits(s)`; needs num_classes=2.
      hidden: units of each hidden layer.
      input_size: n.

    Raises:
      ValueError: if binary is set with another number of classes.
    """
    if binary and num_classes != 2:
        raise ValueError(f"binary=True needs num_classes=2, got {num_classes}")
    network = MLP(1 if binary else num_classes, tuple(hidden))

    def init(key: Array) -> Variables:
        return network.init(key, jnp.zeros((1, input_size)), train=False)

    def apply(variables: Variables, image: Array, train: bool = False) -> tuple[Array, dict]:
        output = network.apply(variables, image, train)
        return (binary_logits(output) if binary else output), variables["batch_stats"]

    def prepare(variables: Variables, factors: jnp.dtype) -> LogitsFn:
        layers = _fold(variables, len(hidden), factors)

        def logits_fn(image: Array) -> Array:
            x = image
            for kernel, bias in layers[:-1]:
                x = nn.relu(product(x, kernel, platform.is_cpu()) + bias[None])
            output = product(x, layers[-1][0], platform.is_cpu()) + layers[-1][1][None]
            return binary_logits(output) if binary else output

        return logits_fn

    return Classifier(init, apply, prepare)


def _fold(variables: Variables, hidden: int, factors: jnp.dtype) -> list[tuple[Array, Array]]:
    """Return kernel and bias of each linear layer, with each batch norm folded into the next layer."""
    params, stats, layers = variables["params"], variables["batch_stats"], []
    for i in range(hidden + 1):
        kernel, bias = params[f"Linear_{i}"]["kernel"], params[f"Linear_{i}"]["bias"]
        if i > 0:
            norm, seen = params[f"BatchNorm_{i - 1}"], stats[f"BatchNorm_{i - 1}"]
            scale = norm["scale"] * jax.lax.rsqrt(seen["var"] + 1e-5)
            shift = norm["bias"] - seen["mean"] * scale
            kernel, bias = scale[:, None] * kernel, bias + (shift[:, None] * kernel).sum(0)
        layers.append((kernel.astype(factors), bias))
    return layers
