"""The forms of a convolution's weight gradient, each a function of (window, images, output gradients).

All compute the gradient of the kernel `[kh, kw, I, O]`, in the type of the output gradients g `[B, h, w, O]`.
`convolution.py` chooses among them on a CPU; a GPU or TPU has `accelerator`.
"""

from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradalign_jax.ops.window import LAYOUT, Form, Window, dense_taps, gradient_window, pad, patches_of
from gradalign_jax.ops.winograd import F43, band, band_window, over_bands, rows_apart, tiled, weighted
from gradalign_jax.types import Array

_GROUP = 5 * 2**16  # image floats per pass of `in_groups`, so that all arrays of a pass fit the caches


def accelerator(window: Window, dtype: jnp.dtype, x: Array, g: Array) -> Array:
    """Return XLA's own weight gradient for a GPU or TPU, with factors and product in `dtype`."""
    kernel = jax.ShapeDtypeStruct((*window.kernel, x.shape[-1], g.shape[-1]), dtype)

    def convolved(kernel: Array) -> Array:
        strides = (window.stride, window.stride)
        return lax.conv_general_dilated(x.astype(dtype), kernel, strides, window.pads, dimension_numbers=LAYOUT)

    return jax.linear_transpose(convolved, kernel)(g.astype(dtype))[0].astype(g.dtype)


def patches(window: Window, x: Array, g: Array, limit: float = 2**22) -> Array:
    """Return one product of patches with output gradients, or one for each kernel row above `limit` floats."""
    rows, columns = window.live_taps(0), window.live_taps(1)
    size = len(rows) * len(columns) * x.shape[-1] * g.size // g.shape[-1]
    parts = [rows] if size <= limit else [range(row, row + 1) for row in rows]
    products = [_flat_product(patches_of(window, x, part), g) for part in parts]  # [taps * I, O] each
    live = jnp.concatenate(products).reshape(len(rows), len(columns), x.shape[-1], g.shape[-1])
    missing = [(t.start, k - t.stop) for t, k in zip((rows, columns), window.kernel, strict=True)]
    return jnp.pad(live, (*missing, (0, 0), (0, 0)))


def few_outputs(window: Window, x: Array, g: Array) -> Array:
    """Return one product of images with patches of output gradients, for fewer outputs than inputs (stride 1)."""
    seen = patches_of(gradient_window(window), g, range(window.kernel[0]))  # [B, H, W, taps * O]
    flat = _flat_product(seen, x).reshape(*window.kernel, g.shape[-1], x.shape[-1])
    return flat[::-1, ::-1].swapaxes(2, 3)


def dense(window: Window, x: Array, g: Array) -> Array:
    """Return the gradient of the matrix of `forms.dense`, summed over the entries of each tap."""
    taps = dense_taps(window)
    matrix = _flat_product(x.reshape(len(x), -1), g.reshape(len(g), -1))
    matrix = matrix.reshape(len(taps), x.shape[-1], len(taps[0]), g.shape[-1])  # [H * W, I, h * w, O]
    kernel = [[jnp.zeros((x.shape[-1], g.shape[-1]), g.dtype)] * window.kernel[1] for _ in range(window.kernel[0])]
    for i, row in enumerate(taps):
        for j, tap in enumerate(row):
            if tap is not None:
                kernel[tap[0]][tap[1]] += matrix[i, :, j]
    return jnp.stack([jnp.stack(row) for row in kernel])


def winograd(window: Window, x: Array, g: Array) -> Array:
    """Return the gradient of `forms.winograd`'s kernel, also with half the products.

    Patches are made of the images or the output gradients, whichever have fewer channels.
    """
    rows, parts, along = tiled(window, x), rows_apart(g), band_window(window)
    one = few_outputs if g.shape[-1] < x.shape[-1] else partial(patches, limit=np.inf)

    def add(total: Array, from_input: Array, from_kernel: Array, to_output: Array) -> Array:
        # [B, tiles, w, O], the gradient of this band's product
        spread = weighted(to_output, [parts[:, :, row] for row in range(F43.tile)])
        gradient = one(along, band(rows, from_input), spread)  # [1, kw, I, O], of the row kernel
        return total + from_kernel[:, None, None, None] * gradient

    zeros = jnp.zeros((*window.kernel, x.shape[-1], g.shape[-1]), g.dtype)
    return over_bands(add, zeros)


def cells(window: Window, x: Array, g: Array) -> Array:
    """Return one product of the images' cells with the output gradients around each (kernels twice the stride).

    A cell is a square of stride x stride pixels. Four outputs read it, each through a quarter of the taps, so that no
    product is wasted and neither side is copied more than four times.
    """
    stride, (height, width) = window.stride, window.output
    sizes = zip(window.image, window.output, window.pads, strict=True)
    rows, columns = ((low, stride * (out + 1) - n - low) for n, out, (low, _) in sizes)
    x = pad(x, (rows, columns))
    # The pixels of each cell as channels: [B, h + 1, w + 1, stride * stride * I]
    pixels = jnp.concatenate([x[:, row::stride, column::stride] for row, column in np.ndindex(stride, stride)], axis=-1)
    # The 2 x 2 outputs that read each cell as channels: [B, h + 1, w + 1, 2 * 2 * O]
    around = pad(g, ((1, 1), (1, 1)))
    readers = [around[:, row : row + height + 1, column : column + width + 1] for row in (1, 0) for column in (1, 0)]
    flat = _flat_product(pixels, jnp.concatenate(readers, axis=-1))
    # Tap = stride * (which output) + (which pixel), along either axis.
    flat = flat.reshape(stride, stride, x.shape[-1], 2, 2, g.shape[-1])
    return flat.transpose(3, 0, 4, 1, 2, 5).reshape(*window.kernel, x.shape[-1], g.shape[-1])


def in_groups(form: Form, window: Window, x: Array, g: Array) -> Array:
    """Return the sum of a form over groups of images that fit a processor's caches, if the batch divides into them."""
    pixels = prod(x.shape[1:])
    size = max((n for n in range(1, len(x)) if len(x) % n == 0 and n * pixels <= _GROUP), default=0)
    if len(x) * pixels <= _GROUP or 4 * size * pixels < _GROUP:  # very small groups cost more than they save
        return form(window, x, g)

    def add(total: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        return total + form(window, *group), None

    zero = jnp.zeros((*window.kernel, x.shape[-1], g.shape[-1]), g.dtype)
    groups = x.reshape(-1, size, *x.shape[1:]), g.reshape(-1, size, *g.shape[1:])
    return lax.scan(add, zero, groups)[0]


def _flat_product(a: Array, b: Array) -> Array:
    """Return aᵀ b over all axes but the last, `[I, O]`.

    XLA's matrix product is slow where few outputs are long sums. Those are split in 8, the narrower side first.
    """
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    if a.shape[1] * b.shape[1] > 2**14 or len(a) % 8 or len(a) < 2**12:
        return lax.dot_general(a, b, (((0,), (0,)), ((), ())))
    if a.shape[1] > b.shape[1]:
        return _flat_product(b, a).T
    a, b = (m.reshape(8, -1, m.shape[1]) for m in (a, b))
    return lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,)))).sum(0)
