"""The forms that a convolution can take, each a function of (window, image, kernel).

Those named `one_type` are for a GPU or TPU, the others for a CPU. All compute the same cross-correlation of images
`[B, H, W, I]` with a kernel `[kh, kw, I, O]`, with factors in the type of the kernel and results in that of the images;
`convolution.py` chooses among them. Gradients of the kernel are in weight_gradients.py.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from gradalign_jax.ops.matmul import product
from gradalign_jax.types import Array

Pads = tuple[tuple[int, int], tuple[int, int]]
LAYOUT = ("NHWC", "HWIO", "NHWC")
TRANSPOSED = ("NHWC", "HWOI", "NHWC")

# Winograd's F(4, 3): four outputs of a three-tap filter from six products (Lavin & Gray, arXiv:1509.09308).
# Along the rows only, it errs in float32 by 3e-6 of the largest value, as against 1e-6 for a plain sum.
TILE = 4
FROM_IMAGE = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
FROM_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
TO_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


class Window(NamedTuple):
    """The static part of a convolution: image and kernel size (rows, columns), stride, zero padding."""

    image: tuple[int, int]
    kernel: tuple[int, int]
    stride: int
    pads: Pads

    @property
    def output(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        sizes = zip(self.image, self.kernel, self.pads, strict=True)
        return tuple((n + low + high - k) // self.stride + 1 for n, k, (low, high) in sizes)

    def live_taps(self, axis: int) -> range:
        """The taps along one axis that meet some pixel of the image and not padding alone."""
        n, k, out, (low, _) = self.image[axis], self.kernel[axis], self.output[axis], self.pads[axis]
        live = [t for t in range(k) if any(0 <= t - low + self.stride * o < n for o in range(out))]
        return range(live[0], live[-1] + 1) if live else range(0)


Form = Callable[[Window, Array, Array], Array]


def plain(window: Window, x: Array, kernel: Array) -> Array:
    """XLA's own convolution."""
    strides, x, out = (window.stride, window.stride), x.astype(kernel.dtype), x.dtype
    return lax.conv_general_dilated(
        x, kernel, strides, window.pads, dimension_numbers=LAYOUT, preferred_element_type=out
    )


def one_type(window: Window, x: Array, kernel: Array) -> Array:
    """XLA's own convolution for a GPU or TPU: its result has the type of its factors, the kernel's.

    With a float32 result of bfloat16 factors XLA would multiply in float32, outside a GPU's tensor cores.
    """
    strides = (window.stride, window.stride)
    factors = x.astype(kernel.dtype), _prepared(kernel)
    return lax.conv_general_dilated(*factors, strides, window.pads, dimension_numbers=LAYOUT).astype(x.dtype)


def spare_row(window: Window, x: Array, kernel: Array) -> Array:
    """XLA's own convolution with one output row more than asked for, thrown away (stride 1).

    On a CPU XLA has two implementations, and takes the slower one (YNNPACK's, by 1.8 for 64 channels) only where the
    output is no larger than the image.
    """
    (top, bottom), sides = window.pads
    spare = window.image[0] + 1 - window.output[0]
    taller = window._replace(pads=((top, bottom + spare), sides))
    return plain(taller, x, kernel)[:, : window.output[0]]


def patches(window: Window, x: Array, kernel: Array) -> Array:
    """One product of each output's patch with the kernel; taps that see padding alone are left out."""
    rows, columns = window.live_taps(0), window.live_taps(1)
    if not rows or not columns:
        return jnp.zeros((len(x), *window.output, kernel.shape[3]), x.dtype)
    seen = patches_of(window, x, rows)
    live = _prepared(kernel[rows.start : rows.stop, columns.start : columns.stop])
    return product(seen, live.reshape(-1, kernel.shape[3]))


def few_outputs(window: Window, x: Array, kernel: Array) -> Array:
    """One product of each pixel with all taps, then sums of shifted images (stride 1)."""
    (rows, columns), (height, width), outputs = window.kernel, window.output, kernel.shape[3]
    taps = _prepared(kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1))
    seen = pad(product(x, taps), window.pads)
    parts = [
        seen[:, row : row + height, column : column + width, tap * outputs : (tap + 1) * outputs]
        for tap, (row, column) in enumerate(np.ndindex(rows, columns))
    ]
    return sum(parts)


def dense(window: Window, x: Array, kernel: Array) -> Array:
    """One product of whole images with the matrix of the linear map, for images of very few pixels."""
    matrix = _prepared(_dense_matrix(window, kernel))
    return product(x.reshape(len(x), -1), matrix).reshape(len(x), *window.output, kernel.shape[3])


def input_gradient_dense(window: Window, g: Array, kernel: Array) -> Array:
    """The input gradient of `dense`, by the same matrix: one of the turned kernel takes longer to lay out than to use.

    In bfloat16 the transpose is made beforehand; XLA would take a product with it in float32 on some CPUs.
    """
    matrix = _prepared(_dense_matrix(window, kernel))
    turned = _prepared(matrix.T) if matrix.dtype == jnp.bfloat16 else matrix.T
    return product(g.reshape(len(g), -1), turned).reshape(len(g), *window.image, kernel.shape[2])


def winograd(window: Window, x: Array, kernel: Array) -> Array:
    """Winograd's F(4, 3) along the rows, patches along the columns: half the products (3 rows, stride 1)."""
    products = []
    for band, weights in zip(bands(window, x), FROM_KERNEL, strict=True):
        products.append(patches(row_window(window, band), band, combine(weights, kernel)[None]))
    return _rows_of_tiles(products, window.output[0])


def input_gradient_winograd(window: Window, g: Array, kernel: Array) -> Array:
    """The input gradient of a convolution of stride 1 and three rows, as `winograd` of the turned kernel.

    The products contract the kernel's outputs where they lie: to transpose it first, fused into the sums of
    `winograd`, costs five times the products where channels are many and pixels few.
    """
    back, taps = turned_window(window), window.kernel[1]
    products = []
    for band, weights in zip(bands(back, g), FROM_KERNEL, strict=True):
        part, seen = combine(weights, kernel[::-1]), pad(band, ((0, 0), back.pads[1]))
        views = [seen[:, :, tap : tap + window.image[1]] for tap in range(taps)]
        products.append(sum(product(view, part[taps - 1 - tap].T) for tap, view in enumerate(views)))
    return _rows_of_tiles(products, window.image[0])


def input_gradient_plain(window: Window, g: Array, kernel: Array) -> Array:
    """The input gradient as XLA's own convolution of the output gradients, dilated by the stride.

    The flipped kernel is transposed, which is twice as fast on a CPU (64 grey images).
    """
    return lax.conv_general_dilated(
        *(g.astype(kernel.dtype), kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), pads_of_input_gradient(window)),
        lhs_dilation=(window.stride, window.stride),
        dimension_numbers=LAYOUT,
        preferred_element_type=g.dtype,
    )


def input_gradient_one_type(window: Window, g: Array, kernel: Array) -> Array:
    """The input gradient for a GPU or TPU, as XLA recognises it: nothing is multiplied by the zeros of the dilation.

    It does so where the kernel's flip stands at the convolution; without the barrier XLA moves it away.
    """
    flipped = lax.rev(_prepared(kernel), (0, 1))
    result = lax.conv_general_dilated(
        *(g.astype(kernel.dtype), flipped, (1, 1), pads_of_input_gradient(window)),
        lhs_dilation=(window.stride, window.stride),
        dimension_numbers=TRANSPOSED,
    )
    return result.astype(g.dtype)


def pads_of_input_gradient(window: Window) -> list[tuple[int, int]]:
    """The padding of output gradients that are dilated by the stride."""
    sizes = zip(window.image, window.kernel, window.output, window.pads, strict=True)
    return [(k - 1 - low, n + low - 1 - window.stride * (out - 1)) for n, k, out, (low, _) in sizes]


def input_gradient_by_phase(window: Window, g: Array, kernel: Array, stride_one: Form) -> Array:
    """The input gradient of a strided convolution: for each phase of the stride, a stride-1 convolution.

    An input pixel n = stride·a + phase meets only the taps t ≡ n + low (mod stride), so that nothing is
    multiplied by the zeros that a dilation would insert.
    """
    stride, size = window.stride, [-(-n // window.stride) for n in window.image]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    rows = []
    for row in range(stride):
        phases = [_phase(window, g, turned, (row, column), stride_one) for column in range(stride)]
        rows.append(jnp.stack(phases, axis=3).reshape(len(g), size[0], -1, turned.shape[3]))
    image = jnp.stack(rows, axis=2).reshape(len(g), -1, *rows[0].shape[2:])
    return image[:, : window.image[0], : window.image[1]]


def _phase(window: Window, g: Array, turned: Array, phase: tuple[int, int], stride_one: Form) -> Array:
    """Returns the input gradients at rows and columns ≡ phase (mod stride)."""
    stride, first, pads, size = window.stride, [], [], []
    for r, n, k, out, (low, _) in zip(phase, window.image, window.kernel, window.output, window.pads, strict=True):
        first.append((r + low) % stride)
        taps = len(range(first[-1], k, stride))
        low = taps - 1 - (r + low - first[-1]) // stride
        size.append(-(-n // stride))
        pads.append((low, size[-1] - out - low + taps - 1))
    # Tap t of the kernel is tap k - 1 - t of the turned one: count back from its end, then forwards.
    first = [(k - 1 - t) % stride if t < k else k for t, k in zip(first, window.kernel, strict=True)]
    part = turned[first[0] :: stride, first[1] :: stride]
    if not part.size:
        return jnp.zeros((len(g), *size, turned.shape[3]), g.dtype)
    return stride_one(Window(window.output, part.shape[:2], 1, tuple(pads)), g, part)


def _prepared(kernel: Array) -> Array:
    """Keeps what was made of a kernel apart from the product that uses it.

    XLA moves work on constant kernels out of a loop, but not what ends in a slice or transpose: those it fuses with
    the product and repeats in every iteration.
    """
    return lax.optimization_barrier(kernel)


def pad(x: Array, pads: Pads) -> Array:
    """Pads rows and columns of images with zeros; crops where a pad is negative."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)))


def patches_of(window: Window, x: Array, rows: range) -> Array:
    """Returns what each output sees through the live taps of some kernel rows, [B, h, w, taps * I]."""
    stride, (height, width) = window.stride, window.output
    x = pad(x, window.pads)
    seen = []
    for row in rows:
        for column in window.live_taps(1):
            last = (row + (height - 1) * stride + 1, column + (width - 1) * stride + 1)
            strides = (1, stride, stride, 1)
            seen.append(lax.slice(x, (0, row, column, 0), (len(x), *last, x.shape[-1]), strides))
    return jnp.concatenate(seen, axis=-1)


def turned_window(window: Window) -> Window:
    """The window of the input gradient of a convolution of stride 1, which the turned kernel slides over."""
    sizes = zip(window.image, window.kernel, window.output, window.pads, strict=True)
    pads = tuple((k - 1 - low, n + low - out) for n, k, out, (low, _) in sizes)
    return Window(window.output, window.kernel, 1, pads)


def _dense_matrix(window: Window, kernel: Array) -> Array:
    """Returns the matrix of the linear map from whole images to whole outputs, [H * W * I, h * w * O]."""
    zero = jnp.zeros(kernel.shape[2:], kernel.dtype)
    blocks = [[zero if tap is None else kernel[tap] for tap in row] for row in dense_taps(window)]
    return jnp.concatenate([jnp.concatenate(row, axis=1) for row in blocks])


def dense_taps(window: Window) -> list[list[tuple[int, int] | None]]:
    """Returns, for each input pixel and each output pixel, the tap that joins them, or None."""
    (rows, columns), (height, width) = window.image, window.output
    (top, _), (left, _) = window.pads

    def tap(n: int, m: int, a: int, b: int) -> tuple[int, int] | None:
        row, column = n + top - a * window.stride, m + left - b * window.stride
        return (row, column) if 0 <= row < window.kernel[0] and 0 <= column < window.kernel[1] else None

    outputs = [(a, b) for a in range(height) for b in range(width)]
    return [[tap(n, m, a, b) for a, b in outputs] for n in range(rows) for m in range(columns)]


def bands(window: Window, x: Array) -> list[Array]:
    """Returns the six combinations of the rows of each tile of four output rows, [B, tiles, W, I] each."""
    tiles = -(-window.output[0] // TILE)
    low = window.pads[0][0]
    x = pad(x, ((low, tiles * TILE + 2 - low - x.shape[1]), (0, 0)))
    rows = [x[:, row : row + (tiles - 1) * TILE + 1 : TILE] for row in range(TILE + 2)]
    return [combine(weights, rows) for weights in FROM_IMAGE]


def _rows_of_tiles(products: Sequence[Array], height: int) -> Array:
    """Returns the output rows, four from the six products of each tile, [B, height, W, O]."""
    rows = jnp.stack([combine(weights, products) for weights in TO_OUTPUT], axis=2)
    return rows.reshape(len(rows), -1, *rows.shape[3:])[:, :height]


def row_window(window: Window, band: Array) -> Window:
    """The window of the convolution along the columns alone that is left for each of the bands."""
    return Window(band.shape[1:3], (1, window.kernel[1]), 1, ((0, 0), window.pads[1]))


def combine(weights: Sequence[float], arrays: Sequence[Array] | Array) -> Array:
    """Returns the weighted sum of arrays, without the terms of weight zero."""
    return sum(w * a for w, a in zip(weights, arrays, strict=True) if w)
