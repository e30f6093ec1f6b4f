"""A 3x3 convolution next to a doubling or a halving of the image, as one step.

Taps that meet equal pixels, or whose results are averaged, are added up beforehand: both maps become a 4x4 kernel of
stride 2, with 16 products for 4 pixels of the larger image instead of 36, and the larger image never exists.
"""

import jax.numpy as jnp

from gradalign_jax.ops.convolution import conv, conv_transpose
from gradalign_jax.types import Array


def double(x: Array) -> Array:
    """Doubles rows and columns of `[B, H, W, C]`, each pixel four times."""
    batch, height, width, channels = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return wide.reshape(batch, 2 * height, 2 * width, channels)


def halve(x: Array) -> Array:
    """The mean of each 2 x 2 pixels of `[B, H, W, C]`."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def double_then_conv(x: Array, kernel: Array, dtype: jnp.dtype | None = None) -> Array:
    """conv(double(x), kernel, padding=1) of a kernel `[3, 3, I, O]`, up to rounding: `[B, 2H, 2W, O]`.

    dtype: precision of the products' factors, by default the kernel's; taps are added up before they are rounded to it.
    """
    turned = 4 * _averaged(kernel[::-1, ::-1].swapaxes(2, 3))
    return conv_transpose(x, turned.astype(dtype or kernel.dtype), stride=2, padding=1)


def conv_then_halve(x: Array, kernel: Array, dtype: jnp.dtype | None = None) -> Array:
    """halve(conv(x, kernel, padding=1)) of a kernel `[3, 3, I, O]`, up to rounding: `[B, H/2, W/2, O]`; H, W even.

    dtype: as in `double_then_conv`.
    """
    return conv(x, _averaged(kernel).astype(dtype or kernel.dtype), stride=2, padding=1)


def _averaged(kernel: Array) -> Array:
    """The kernel `[4, 4, I, O]` whose result is the mean of this one's `[3, 3, I, O]` at 2 x 2 neighbouring places."""
    if kernel.shape[:2] != (3, 3):
        raise ValueError(f"a kernel of 3 x 3 taps is needed, this one is {kernel.shape}")
    for axis in (0, 1):
        late, early = ([(0, 0)] * axis + [pad] + [(0, 0)] * (3 - axis) for pad in ((1, 0), (0, 1)))
        kernel = (jnp.pad(kernel, early) + jnp.pad(kernel, late)) / 2
    return kernel
