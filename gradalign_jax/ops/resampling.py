"""A 3x3 convolution after a doubling or before a halving of the image, as one step.

Taps that meet equal pixels, or whose results are averaged, are added up beforehand: both maps become a 4x4 kernel of
stride 2, with 16 products for 4 pixels of the larger image instead of 36, and the larger image is never computed.
"""

import jax.numpy as jnp

from gradalign_jax.ops.convolution import conv, conv_transpose
from gradalign_jax.types import Array


def double(x: Array) -> Array:
    """Repeat each pixel of `[B, H, W, C]` in 2 x 2, `[B, 2H, 2W, C]`."""
    batch, height, width, channels = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return wide.reshape(batch, 2 * height, 2 * width, channels)


def halve(x: Array) -> Array:
    """Return the mean of each 2 x 2 pixels of `[B, H, W, C]`, `[B, H/2, W/2, C]`; H and W even."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def double_then_conv(x: Array, kernel: Array, dtype: jnp.dtype | None = None) -> Array:
    """Return conv(double(x), kernel, padding=1), up to rounding, `[B, 2H, 2W, O]`.

    Args:
      x: images `[B, H, W, I]`.
      kernel: `[3, 3, I, O]`.
      dtype: type of the products' factors, by default the kernel's; taps are added up before they are cast to it.

    Raises:
      ValueError: if the kernel is not 3 x 3.
    """
    transposed = 4 * _averaged(kernel[::-1, ::-1].swapaxes(2, 3))
    return conv_transpose(x, transposed.astype(dtype or kernel.dtype), stride=2, padding=1)


def conv_then_halve(x: Array, kernel: Array, dtype: jnp.dtype | None = None) -> Array:
    """Return halve(conv(x, kernel, padding=1)), up to rounding, `[B, H/2, W/2, O]`.

    Args:
      x: images `[B, H, W, I]`; H and W even.
      kernel: `[3, 3, I, O]`.
      dtype: as in `double_then_conv`.

    Raises:
      ValueError: if the kernel is not 3 x 3.
    """
    return conv(x, _averaged(kernel).astype(dtype or kernel.dtype), stride=2, padding=1)


def _averaged(kernel: Array) -> Array:
    """Return the kernel `[4, 4, I, O]` whose result is the mean of a `[3, 3, I, O]` kernel's at 2 x 2 neighbors."""
    if kernel.shape[:2] != (3, 3):
        raise ValueError(f"kernel {kernel.shape} does not have 3 x 3 taps: resampling needs `[3, 3, I, O]`")
    for axis in (0, 1):
        late, early = ([(0, 0)] * axis + [pad] + [(0, 0)] * (3 - axis) for pad in ((1, 0), (0, 1)))
        kernel = (jnp.pad(kernel, early) + jnp.pad(kernel, late)) / 2
    return kernel
