"""The forms that a convolution can take, each a function of (window, image, kernel).

`accelerator` is for a GPU or TPU, the others for a CPU. All compute the same cross-correlation of images
`[B, H, W, I]` with a kernel `[kh, kw, I, O]`: factors have the type of the kernel, results that of the images.
`convolution.py` chooses among them. Gradients are in input_gradients.py and weight_gradients.py.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

from gradalign_jax.ops.matmul import product
from gradalign_jax.ops.window import LAYOUT, Window, dense_taps, pad, patches_of
from gradalign_jax.ops.winograd import F43, band, band_window, over_bands, rows_from, tiled, tiles_of, weighted
from gradalign_jax.types import Array

_GROUP = 2**12  # pixels per pass of `few_outputs`


def plain(window: Window, x: Array, kernel: Array) -> Array:
    """Return XLA's own convolution."""
    strides, x, out = (window.stride, window.stride), x.astype(kernel.dtype), x.dtype
    return lax.conv_general_dilated(
        x, kernel, strides, window.pads, dimension_numbers=LAYOUT, preferred_element_type=out
    )


def accelerator(window: Window, x: Array, kernel: Array) -> Array:
    """Return XLA's own convolution in one type, the kernel's, for a GPU or TPU.

    With bfloat16 factors and a float32 result XLA would multiply in float32, outside a GPU's tensor cores.
    """
    strides = (window.stride, window.stride)
    factors = x.astype(kernel.dtype), materialized(kernel)
    return lax.conv_general_dilated(*factors, strides, window.pads, dimension_numbers=LAYOUT).astype(x.dtype)


def spare_row(window: Window, x: Array, kernel: Array) -> Array:
    """Return XLA's own convolution, computed with one output row too many (stride 1).

    XLA has two CPU implementations. It chooses the slower one, YNNPACK's, only if the output is no larger than the
    image.
    """
    (top, bottom), sides = window.pads
    spare = window.image[0] + 1 - window.output[0]
    taller = window._replace(pads=((top, bottom + spare), sides))
    return plain(taller, x, kernel)[:, : window.output[0]]


def patches(window: Window, x: Array, kernel: Array) -> Array:
    """Return one product of each output's patch with the kernel; taps that read only padding are left out."""
    rows, columns = window.live_taps(0), window.live_taps(1)
    if not rows or not columns:
        return jnp.zeros((len(x), *window.output, kernel.shape[3]), x.dtype)
    seen = patches_of(window, x, rows)  # [B, h, w, taps * I]
    live = materialized(kernel[rows.start : rows.stop, columns.start : columns.stop])
    return product(seen, live.reshape(-1, kernel.shape[3]))


def few_outputs(window: Window, x: Array, kernel: Array) -> Array:
    """Return sums of shifted images of one product of each pixel with all taps (stride 1).

    With one output the sums of a large batch cost more than its product: it is computed in groups of images.
    """
    pixels = x.shape[1] * x.shape[2]
    size = max((n for n in range(1, len(x)) if len(x) % n == 0 and n * pixels <= _GROUP), default=0)
    if kernel.shape[3] > 1 or len(x) * pixels <= _GROUP or not size:
        return _few_outputs(window, x, kernel)
    groups = lax.map(lambda group: _few_outputs(window, group, kernel), x.reshape(-1, size, *x.shape[1:]))
    return groups.reshape(len(x), *groups.shape[2:])


def _few_outputs(window: Window, x: Array, kernel: Array) -> Array:
    (rows, columns), (height, width), outputs = window.kernel, window.output, kernel.shape[3]
    taps = materialized(kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1))  # [I, taps * O]
    products = pad(product(x, taps), window.pads)  # [B, H, W, taps * O], padded
    parts = [
        products[:, row : row + height, column : column + width, tap * outputs : (tap + 1) * outputs]
        for tap, (row, column) in enumerate(np.ndindex(rows, columns))
    ]
    return sum(parts)  # type: ignore[return-value]  # sum starts at 0


def dense(window: Window, x: Array, kernel: Array) -> Array:
    """Return one product of whole images with the matrix of the linear map, for images of very few pixels."""
    matrix = dense_matrix(window, kernel)
    return product(x.reshape(len(x), -1), matrix).reshape(len(x), *window.output, kernel.shape[3])


def winograd(window: Window, x: Array, kernel: Array) -> Array:
    """Return F(4, 3) along the rows and patches along the columns: half the products (3 kernel rows, stride 1)."""
    rows, along = tiled(window, x), band_window(window)

    def add(total: Array, from_input: Array, from_kernel: Array, to_output: Array) -> Array:
        row_kernel = weighted(from_kernel, kernel)[None]  # [1, kw, I, O]
        product = patches(along, band(rows, from_input), row_kernel)  # [B, tiles, w, O]
        return total + to_output[None, None, :, None, None] * product[:, :, None]

    zeros = jnp.zeros((len(x), tiles_of(window), F43.tile, window.output[1], kernel.shape[3]), x.dtype)
    return rows_from(over_bands(add, zeros), window.output[0])


def dense_matrix(window: Window, kernel: Array) -> Array:
    """Return the matrix of the linear map from whole images to whole outputs, `[H * W * I, h * w * O]`."""
    zero = jnp.zeros(kernel.shape[2:], kernel.dtype)
    blocks = [[zero if tap is None else kernel[tap] for tap in row] for row in dense_taps(window)]
    return materialized(jnp.concatenate([jnp.concatenate(row, axis=1) for row in blocks]))


def materialized(kernel: Array) -> Array:
    """Return the kernel as a separate array, which XLA does not fuse with the product that reads it.

    XLA moves work on constant kernels out of a loop unless it ends in a slice or a transpose: those it fuses with the
    product and repeats in every iteration.
    """
    return lax.optimization_barrier(kernel)
