"""How a convolution is lowered: plainly on a GPU or TPU, by shape on a CPU.

A convolution y(x, w), its input gradient and its weight gradient are three bilinear maps, and the
derivatives of each are the other two. On a CPU each is therefore a `custom_vjp` of its own that may be
lowered as measures fastest, and derivatives of every order (the alignment penalty takes two) follow.
"""

from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradalign_jax.types import Array

Pads = tuple[tuple[int, int], tuple[int, int]]
LAYOUT = ("NHWC", "HWIO", "NHWC")
MAX_PATCHES = 2**24  # floats; larger sets of patches are made and used one row of the kernel at a time

# Winograd's F(4, 3): four outputs of a 3-tap filter from six products (Lavin & Gray 2016, arXiv:1509.09308).
# It is used along the rows only: an error of about 3e-6 of the largest value in float32, as against 1e-6.
TILE = 4
WINOGRAD_IMAGE = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
WINOGRAD_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
WINOGRAD_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


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
        """The taps along one axis that meet a pixel of the image, not padding alone."""
        n, k, out, (low, _) = self.image[axis], self.kernel[axis], self.output[axis], self.pads[axis]
        live = [t for t in range(k) if any(0 <= t - low + self.stride * o < n for o in range(out))]
        return range(live[0], live[-1] + 1)


def conv(
    x: Array, kernel: Array, stride: int = 1, padding: int | Pads = 0, backend: str | None = None
) -> Array:
    """Returns the cross-correlation of images [B, H, W, I] with a kernel [kh, kw, I, O].

    padding: zeros on every side, or ((top, bottom), (left, right)).
    backend: the platform to lower for, by default the one that JAX runs on.
    Reverse-mode differentiable any number of times; there is no forward mode on a CPU.
    Raises ValueError if the channels of image and kernel differ.
    """
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(f"image has {x.shape[-1]} channels, kernel {kernel.shape} expects {kernel.shape[2]}")
    pads = ((padding, padding),) * 2 if isinstance(padding, int) else tuple(map(tuple, padding))
    if (backend or jax.default_backend()) != "cpu":
        return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=LAYOUT)
    return _forward(Window(x.shape[1:3], kernel.shape[:2], stride, pads), x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(window: Window, x: Array, kernel: Array) -> Array:
    return _choose(window, *kernel.shape[2:])(window, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_gradient(window: Window, g: Array, kernel: Array) -> Array:
    if window.stride > 1:
        return _by_phase(window, g, kernel)
    return _forward_transposed(window, g, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weight_gradient(window: Window, x: Array, g: Array) -> Array:
    form = _choose(window, x.shape[-1], g.shape[-1])
    if form is _dense:
        return _weights_from_dense(window, x, g)
    if window.kernel[0] == 3 and window.stride == 1 and min(window.output) > TILE - 1:
        return _weights_by_rows(window, x, g)
    return _weights_from_patches(window, x, g)


_forward.defvjp(
    lambda window, x, kernel: (_forward(window, x, kernel), (x, kernel)),
    lambda window, saved, g: (_input_gradient(window, g, saved[1]), _weight_gradient(window, saved[0], g)),
)
_input_gradient.defvjp(
    lambda window, g, kernel: (_input_gradient(window, g, kernel), (g, kernel)),
    lambda window, saved, c: (_forward(window, c, saved[1]), _weight_gradient(window, c, saved[0])),
)
_weight_gradient.defvjp(
    lambda window, x, g: (_weight_gradient(window, x, g), (x, g)),
    lambda window, saved, v: (_input_gradient(window, saved[1], v), _forward(window, saved[0], v)),
)
