"""The forms that a convolution can take on a CPU, each a function of (window, image, kernel).

All compute the same cross-correlation of images [B, H, W, I] with a kernel [kh, kw, I, O]; `conv.py` chooses
among them. Those called `weights_...` compute the gradient of the kernel from images and output gradients.
"""

from math import prod
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from gradalign_jax.types import Array

Pads = tuple[tuple[int, int], tuple[int, int]]
LAYOUT = ("NHWC", "HWIO", "NHWC")

# Winograd's F(4, 3): four outputs of a three-tap filter from six products (Lavin & Gray 2016, arXiv:1509.09308).
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

    @property
    def transposed(self) -> "Window":
        """The window of the stride-1 convolution that takes output gradients to input gradients."""
        pads = []
        for n, k, out, (low, _) in zip(self.image, self.kernel, self.output, self.pads, strict=True):
            pads.append((k - 1 - low, n + low - 1 - (out - 1) * self.stride))
        return Window(tuple((n - 1) * self.stride + 1 for n in self.output), self.kernel, 1, tuple(pads))

    def live_taps(self, axis: int) -> range:
        """The taps along one axis that meet some pixel of the image and not padding alone."""
        n, k, out, (low, _) = self.image[axis], self.kernel[axis], self.output[axis], self.pads[axis]
        live = [t for t in range(k) if any(0 <= t - low + self.stride * o < n for o in range(out))]
        return range(live[0], live[-1] + 1) if live else range(0)


def plain(window: Window, x: Array, kernel: Array) -> Array:
    """XLA's own convolution."""
    strides = (window.stride, window.stride)
    return lax.conv_general_dilated(x, kernel, strides, window.pads, dimension_numbers=LAYOUT)


def patches(window: Window, x: Array, kernel: Array) -> Array:
    """One product of the patches that each output sees with the kernel; taps of padding alone are left out."""
    rows, columns = window.live_taps(0), window.live_taps(1)
    seen = _patches(window, x, rows)
    live = kernel[rows.start : rows.stop, columns.start : columns.stop]
    return (_flat(seen) @ live.reshape(-1, kernel.shape[3])).reshape(*seen.shape[:3], -1)


def dense(window: Window, x: Array, kernel: Array) -> Array:
    """One product of whole images with the matrix of the linear map, for images of very few pixels."""
    zero = jnp.zeros(kernel.shape[2:], kernel.dtype)
    taps = _dense_taps(window)
    blocks = [[zero if tap is None else kernel[tap] for tap in row] for row in taps]
    matrix = jnp.concatenate([jnp.concatenate(row, axis=1) for row in blocks])
    return (x.reshape(len(x), -1) @ matrix).reshape(len(x), *window.output, kernel.shape[3])


def winograd(window: Window, x: Array, kernel: Array) -> Array:
    """Winograd's F(4, 3) along the rows, patches along the columns: half the products. Three rows, stride 1."""
    products = [
        patches(*_row_problem(window, band, _combine(weights, kernel)[None]))
        for band, weights in zip(_bands(window, x), FROM_KERNEL, strict=True)
    ]
    rows = jnp.stack([_combine(weights, products) for weights in TO_OUTPUT], axis=2)
    return rows.reshape(len(x), -1, *rows.shape[3:])[:, : window.output[0]]


def weights_patches(window: Window, x: Array, g: Array, limit: int = 2**24) -> Array:
    """One product of the patches with the output gradients, or one for each kernel row above `limit` floats."""
    rows, columns = window.live_taps(0), window.live_taps(1)
    size = len(rows) * len(columns) * x.shape[-1] * g.size // g.shape[-1]
    parts = [rows] if size <= limit else [range(row, row + 1) for row in rows]
    live = [_flat_product(_patches(window, x, part), g) for part in parts]
    live = jnp.concatenate(live).reshape(len(rows), len(columns), x.shape[-1], g.shape[-1])
    missing = [(t.start, k - t.stop) for t, k in zip((rows, columns), window.kernel, strict=True)]
    return jnp.pad(live, (*missing, (0, 0), (0, 0)))


def weights_dense(window: Window, x: Array, g: Array) -> Array:
    """The gradient of the matrix of `dense`, summed over the places where each tap stands."""
    taps = _dense_taps(window)
    matrix = _flat_product(x.reshape(len(x), -1), g.reshape(len(g), -1))
    matrix = matrix.reshape(len(taps), x.shape[-1], len(taps[0]), g.shape[-1])
    kernel = [[jnp.zeros((x.shape[-1], g.shape[-1]), g.dtype)] * window.kernel[1] for _ in range(window.kernel[0])]
    for i, row in enumerate(taps):
        for j, tap in enumerate(row):
            if tap is not None:
                kernel[tap[0]][tap[1]] += matrix[i, :, j]
    return jnp.stack([jnp.stack(row) for row in kernel])


def weights_winograd(window: Window, x: Array, g: Array) -> Array:
    """The gradient of `winograd`'s kernel, by the same half of the products."""
    missing = -window.output[0] % TILE
    tiles = jnp.pad(g, ((0, 0), (0, missing), (0, 0), (0, 0)))
    tiles = [tiles[:, row::TILE] for row in range(TILE)]
    gradients = []
    for band, weights in zip(_bands(window, x), zip(*TO_OUTPUT, strict=True), strict=True):
        spread = _combine(weights, tiles)
        seen = _patches(_row_window(window, band), band, range(1))
        gradients.append(_flat_product(seen, spread).reshape(window.kernel[1], x.shape[-1], g.shape[-1]))
    return jnp.stack([_combine(weights, gradients) for weights in zip(*FROM_KERNEL, strict=True)])


def by_phase(window: Window, g: Array, kernel: Array, form) -> Array:
    """The input gradient of a strided convolution: one stride-1 convolution for each phase of the stride."""
    stride, (height, width) = window.stride, window.image
    rows = []
    for row in range(stride):
        phases = [_phase(window, g, kernel, (row, column), form) for column in range(stride)]
        rows.append(jnp.stack(phases, axis=3).reshape(len(g), -1, stride * phases[0].shape[2], kernel.shape[2]))
    return jnp.stack(rows, axis=2).reshape(len(g), -1, *rows[0].shape[2:])[:, :height, :width]
