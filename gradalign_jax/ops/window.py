"""The geometry of a convolution: its window, its padding, its taps and the patches that they read."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from gradalign_jax.types import Array

LAYOUT = ("NHWC", "HWIO", "NHWC")

Pads = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right); negative numbers crop


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
        rows, columns = ((n + low + high - k) // self.stride + 1 for n, k, (low, high) in sizes)
        return rows, columns

    def live_taps(self, axis: int) -> range:
        """Return the taps along one axis that read at least one pixel of the image, not only padding."""
        n, k, out, (low, _) = self.image[axis], self.kernel[axis], self.output[axis], self.pads[axis]
        live = [t for t in range(k) if any(0 <= t - low + self.stride * o < n for o in range(out))]
        return range(live[0], live[-1] + 1) if live else range(0)


Form = Callable[[Window, Array, Array], Array]


def window_of(image: Sequence[int], kernel: Sequence[int], stride: int, padding: int | Pads) -> Window:
    """Return the window of a convolution from the shapes `[B, H, W, I]` and `[kh, kw, I, O]`."""
    (top, bottom), (left, right) = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    return Window((image[1], image[2]), (kernel[0], kernel[1]), stride, ((top, bottom), (left, right)))


def gradient_window(window: Window) -> Window:
    """Return the window of a stride-1 convolution's input gradient, with which the flipped kernel slides over g."""
    sizes = zip(window.image, window.kernel, window.output, window.pads, strict=True)
    rows, columns = ((k - 1 - low, n + low - out) for n, k, out, (low, _) in sizes)
    return Window(window.output, window.kernel, 1, (rows, columns))


def dilated_pads(window: Window) -> list[tuple[int, int]]:
    """Return the padding with which an input gradient reads output gradients that are dilated by the stride."""
    sizes = zip(window.image, window.kernel, window.output, window.pads, strict=True)
    return [(k - 1 - low, n + low - 1 - window.stride * (out - 1)) for n, k, out, (low, _) in sizes]


def pad(x: Array, pads: Pads) -> Array:
    """Pad rows and columns of images `[B, H, W, C]` with zeros; crop where a pad is negative."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)))


def patches_of(window: Window, x: Array, rows: range) -> Array:
    """Return the pixels that each output reads through the live taps of these kernel rows, `[B, h, w, taps * I]`."""
    x, columns = pad(x, window.pads), window.live_taps(1)
    if len(rows) * len(columns) <= 9:
        return jnp.concatenate([_view(window, x, (row, column)) for row in rows for column in columns], axis=-1)
    # Along the columns, then along the rows: 7 + 7 views instead of 49 compile faster.
    seen = jnp.concatenate([_view(window, x, (None, column)) for column in columns], axis=-1)
    return jnp.concatenate([_view(window, seen, (row, None)) for row in rows], axis=-1)


def _view(window: Window, x: Array, taps: tuple[int | None, int | None]) -> Array:
    """Return the pixels of padded images that every output reads through one tap; None leaves an axis as it is."""
    for axis, (tap, out) in enumerate(zip(taps, window.output, strict=True), start=1):
        if tap is not None:
            x = lax.slice_in_dim(x, tap, tap + (out - 1) * window.stride + 1, window.stride, axis)
    return x


def dense_taps(window: Window) -> list[list[tuple[int, int] | None]]:
    """Return the tap that joins each input pixel (outer list) to each output pixel (inner list), None without one."""
    (rows, columns), (height, width) = window.image, window.output
    (top, _), (left, _) = window.pads

    def tap(n: int, m: int, a: int, b: int) -> tuple[int, int] | None:
        row, column = n + top - a * window.stride, m + left - b * window.stride
        return (row, column) if 0 <= row < window.kernel[0] and 0 <= column < window.kernel[1] else None

    outputs = [(a, b) for a in range(height) for b in range(width)]
    return [[tap(n, m, a, b) for a, b in outputs] for n in range(rows) for m in range(columns)]
