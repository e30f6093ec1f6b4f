"""The dense layer with PyTorch's defaults."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from gradalign_jax.ops import platform
from gradalign_jax.ops.matmul import product
from gradalign_jax.types import Array


def torch_uniform(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Draws a kernel [..., fan_in, fan_out] from U(±1/√fan_in), PyTorch's default for linear and conv layers.

    fan_in is the product of all axes but the last. Reference: torch.nn.Linear.reset_parameters.
    """
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nn.Module):
    """A dense layer with PyTorch's default initialisation of kernel and bias: U(±1/√fan_in).

    The product is taken in the kernel's precision and summed in the input's.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Maps [B, fan_in] to [B, features]; weights that are not being trained are laid out for many products."""
        bound = x.shape[-1] ** -0.5
        kernel = self.param("kernel", torch_uniform, (x.shape[-1], self.features))
        bias = self.param("bias", jax.random.uniform, (self.features,), x.dtype, -bound, bound)
        return product(x, kernel, not train and platform.is_cpu()) + bias
