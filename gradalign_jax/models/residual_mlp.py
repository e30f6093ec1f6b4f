"""The generator of Δ̂x for Spheres: a multilayer perceptron of the point and its two labels (section 2.3.1)."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from gradalign_jax.models.layers import BatchNorm, Linear
from gradalign_jax.models.unet import small_scale
from gradalign_jax.types import Array, ResidualGenerator, Variables


class ResidualMLP(nn.Module):
    """Linear, ReLU, batch norm for each hidden layer, then a linear layer with as many outputs as the point."""

    hidden: Sequence[int]
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Array, desired: Array, actual: Array, train: bool) -> Array:
        """Map points `[B, n]` and labels `[B]`, `[B]` to residuals `[B, n]`."""
        size = x.shape[-1]
        x = jnp.concatenate([x, desired[:, None].astype(x.dtype), actual[:, None].astype(x.dtype)], axis=-1)
        for features in self.hidden:
            x = nn.relu(Linear(features)(x))
            x = BatchNorm(axis_name=self.axis_name, scale_init=small_scale)(x, train)
        return Linear(size)(x)


def create(
    hidden: Sequence[int] = (1000, 1000), input_size: int = 500, axis_name: str | None = None
) -> ResidualGenerator:
    """Build the generator for points `[B, input_size]` (2,008,500 parameters by default).

    Args:
      hidden: units of each hidden layer.
      input_size: n.
      axis_name: the mapped axis over which batch statistics are averaged.
    """
    network = ResidualMLP(tuple(hidden), axis_name)

    def init(key: Array) -> Variables:
        label = jnp.zeros(1, jnp.int32)
        return network.init(key, jnp.zeros((1, input_size)), label, label, False)

    def apply(variables: Variables, image: Array, desired: Array, actual: Array, train: bool = False):
        residual, state = network.apply(variables, image, desired, actual, train, mutable=["batch_stats"])
        return residual, state["batch_stats"]

    return ResidualGenerator(init, apply)
