"""The U-Net that generates Δ̂x for images: G(x, ¬y, y) of section 2.3.1, with the layers of the authors' code."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from gradalign_jax.models.layers import BatchNorm
from gradalign_jax.ops.convolution import conv
from gradalign_jax.types import Array, ResidualGenerator, Variables


def small_scale(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Draw a batch norm's weights from N(0.1, 0.01²), so that the first residuals are small."""
    return 0.1 + 0.01 * jax.random.normal(key, shape, dtype)


class Block(nn.Module):
    """A 3x3 convolution with bias, batch norm and, except in the last block, ReLU."""

    features: int
    norm: Callable
    activate: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map `[B, H, W, I]` to `[B, H, W, features]`."""
        he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", he_normal, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = self.norm(name="bn")(conv(x, kernel, padding=1) + jax.lax.broadcast_to_rank(bias, x.ndim), train)
        return nn.relu(x) if self.activate else x


class UNet(nn.Module):
    """An encoder, label maps in the bottleneck, a decoder with skip connections; the last layer is a batch norm."""

    channels: int
    width: int
    downsamplings: int
    axis_name: str | None

    @nn.compact
    def __call__(self, image: Array, desired: Array, actual: Array, train: bool) -> Array:
        """Map images `[B, H, W, channels]` and labels `[B]`, `[B]` to residuals of the images' shape."""
        norm = partial(BatchNorm, axis_name=self.axis_name, momentum=0.01, scale_init=small_scale)
        widths = [self.width * 2**level for level in range(self.downsamplings + 1)]
        x, skips = image, []
        for level, features in enumerate(widths):
            if level > 0:
                skips.append(x)
                x = max_pool(x)
            x = Block(features, norm, name=f"encode{level}_0")(x, train)
            x = Block(features, norm, name=f"encode{level}_1")(x, train)
        x = jnp.concatenate([x, label_maps(desired, actual, x.shape[1:3])], axis=-1)
        for level in reversed(range(self.downsamplings)):
            x = Block(widths[level], norm, name=f"decode{level}_up")(upsample(x), train)
            x = jnp.concatenate([x, skips[level]], axis=-1)
            x = Block(widths[level], norm, name=f"decode{level}_0")(x, train)
            last = level == 0
            x = Block(self.channels if last else widths[level], norm, not last, name=f"decode{level}_1")(x, train)
        return x


def label_maps(desired: Array, actual: Array, size: tuple[int, int]) -> Array:
    """Return constant maps `[B, h, w, 3]` of desired label, actual label and their difference.

    A label v is encoded as (v - 0.7) / 0.2: 0 as -3.5, 1 as 1.5. The paper names two maps, the authors' code has three.
    """
    wanted, given = ((label.astype(jnp.float32) - 0.7) / 0.2 for label in (desired, actual))
    values = jnp.stack([wanted, given, given - wanted], axis=-1)
    return jnp.broadcast_to(values[:, None, None], (len(values), *size, 3))


def max_pool(x: Array) -> Array:
    """Return the maximum over 2x2 windows, `[B, H, W, C]` to `[B, H/2, W/2, C]`.

    Its gradient goes to the first maximum in row-major order, as in PyTorch.
    """
    for axis in (2, 1):
        first, second = (jax.lax.slice_in_dim(x, start, None, 2, axis) for start in (0, 1))
        x = jnp.where(second > first, second, first)
    return x


def upsample(x: Array) -> Array:
    """Double rows and columns bilinearly with aligned corners (PyTorch's align_corners=True)."""
    return _double(_double(x, axis=1), axis=2)


def _double(x: Array, axis: int) -> Array:
    # Output j lies at j (n - 1) / (2n - 1): j = 2i just before input i, j = 2i + 1 just after it.
    size = x.shape[axis]
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    before = (jnp.arange(size, dtype=x.dtype) / (2 * size - 1)).reshape(shape)
    after = jnp.flip(before, axis)
    first, last = (jax.lax.slice_in_dim(x, at, at + 1, axis=axis) for at in (0, size - 1))
    left = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
    right = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
    pairs = jnp.stack([before * left + (1 - before) * x, after * right + (1 - after) * x], axis=axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def create(
    channels: int = 1, width: int = 64, downsamplings: int = 4, axis_name: str | None = None
) -> ResidualGenerator:
    """Build the generator for images `[B, H, W, channels]`, H and W multiples of 2^downsamplings.

    With width 64 it has 2,036,355 parameters for 2 downsamplings (28 x 28) and 34,503,171 for 4 (224 x 224).

    Args:
      channels: of the images.
      width: channels at full resolution, doubled by each downsampling.
      downsamplings: number of levels below full resolution.
      axis_name: the mapped axis over which batch statistics are averaged.
    """
    network = UNet(channels, width, downsamplings, axis_name)

    def init(key: Array) -> Variables:
        side = 2**downsamplings
        labels = jnp.zeros(1, jnp.int32)
        return jax.jit(partial(network.init, train=False))(key, jnp.zeros((1, side, side, channels)), labels, labels)

    def apply(variables: Variables, image: Array, desired: Array, actual: Array, train: bool = False):
        if any(size % 2**downsamplings for size in image.shape[1:3]):
            raise ValueError(f"images {image.shape}: pad or crop to multiples of {2**downsamplings}")
        residual, state = network.apply(variables, image, desired, actual, train, mutable=["batch_stats"])
        return residual, state["batch_stats"]

    return ResidualGenerator(init, apply)
