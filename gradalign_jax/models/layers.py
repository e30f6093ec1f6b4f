"""The dense layer and batch normalization with PyTorch's defaults."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gradalign_jax.ops import platform
from gradalign_jax.ops.matmul import product
from gradalign_jax.types import Array


def torch_uniform(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Draw a kernel `[..., fan_in, fan_out]` from U(±1/√fan_in), PyTorch's default for linear and conv layers.

    fan_in is the product of all axes but the last. Reference: torch.nn.Linear.reset_parameters.
    """
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nn.Module):
    """A dense layer with PyTorch's default initialization of kernel and bias: U(±1/√fan_in).

    The product's factors have the kernel's type; the sum with the bias has the input's.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Map `[B, fan_in]` to `[B, features]`; in evaluation mode the kernel is stored for many products."""
        bound = x.shape[-1] ** -0.5
        kernel = self.param("kernel", torch_uniform, (x.shape[-1], self.features))
        bias = self.param("bias", jax.random.uniform, (self.features,), x.dtype, -bound, bound)
        return product(x, kernel, not train and platform.is_cpu()) + lax.broadcast_to_rank(bias, x.ndim)


class BatchNorm(nn.Module):
    """Batch normalization with PyTorch's rules: momentum 0.1, eps 1e-5, running variance unbiased.

    frozen: use the stored statistics in training too; weight and bias stay trainable.
    axis_name: the mapped axis over which a batch is split; the statistics are those of the whole batch.
    Reference: torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm.
    """

    frozen: bool = False
    axis_name: str | None = None
    momentum: float = 0.1
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalize `[B, ..., C]` over all axes but the last."""
        channels = x.shape[-1]
        mean, var = self._statistics(x, train)
        weight = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        scale = weight * lax.rsqrt(var + 1e-5)
        per_channel = partial(lax.broadcast_to_rank, rank=x.ndim)
        return (x * per_channel(scale) + per_channel(bias - mean * scale)).astype(x.dtype)

    def _statistics(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Return the mean and variance to normalize with; in training, update the running ones."""
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1])
        running_var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1])
        if not train or self.frozen:
            return running_mean.value, running_var.value
        mean, var, count = self._batch_statistics(x)
        if not self.is_initializing():
            rate, unbiased = self.momentum, var * (count / max(count - 1, 1))
            running_mean.value = lax.stop_gradient((1 - rate) * running_mean.value + rate * mean)
            running_var.value = lax.stop_gradient((1 - rate) * running_var.value + rate * unbiased)
        return mean, var

    def _batch_statistics(self, x: Array) -> tuple[Array, Array, int]:
        """Return mean, biased variance and number of rows of the whole batch, summed in float32 or higher."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        average = partial(lax.pmean, axis_name=self.axis_name) if self.axis_name else lambda a: a
        count = x.size // x.shape[-1] * (lax.axis_size(self.axis_name) if self.axis_name else 1)
        axes = tuple(range(x.ndim - 1))
        mean = average(x.mean(axes))
        return mean, average(jnp.square(x - lax.broadcast_to_rank(mean, x.ndim)).mean(axes)), count
