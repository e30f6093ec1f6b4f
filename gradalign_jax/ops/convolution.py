"""A convolution with derivatives of every order, each lowered in the form that is fastest on its platform.

A convolution y(x, w), its input gradient and its weight gradient are three bilinear maps, and the derivatives of each
are the other two. Each is therefore a `custom_vjp` of its own, and derivatives of every order (the alignment penalty
takes two) follow. On a CPU the form depends on the shape. On a GPU or TPU it is XLA's own convolution, written so that
XLA recognises all three: factors and result have one type, and an input gradient's kernel is flipped where it is used.
"""

from collections.abc import Sequence
from functools import partial
from math import prod

import jax
import jax.numpy as jnp

from gradalign_jax.ops import forms, platform, weight_gradients
from gradalign_jax.ops.forms import Form, Pads, Window
from gradalign_jax.types import Array


def conv(x: Array, kernel: Array, stride: int = 1, padding: int | Pads = 0) -> Array:
    """Return the cross-correlation of images `[B, H, W, I]` with a kernel `[kh, kw, I, O]`.

    Factors have the kernel's type, sums are in float32, the result has the image's type.
    padding: zeros on every side, or ((top, bottom), (left, right)).
    Reverse-mode differentiable any number of times; there is no forward mode.

    Raises:
      ValueError: if the channels of image and kernel differ.
    """
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(f"image has {x.shape[-1]} channels, kernel {kernel.shape} expects {kernel.shape[2]}")
    return _forward(window_of(x.shape, kernel.shape, stride, padding), x, kernel)


def window_of(image: Sequence[int], kernel: Sequence[int], stride: int, padding: int | Pads) -> Window:
    """Return the window of a convolution from the shapes of its images and its kernel."""
    pads = ((padding, padding),) * 2 if isinstance(padding, int) else tuple(map(tuple, padding))
    return Window(tuple(image[1:3]), tuple(kernel[:2]), stride, pads)


def conv_transpose(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Return the transpose of `conv`'s linear map: images `[B, h, w, O]` to `[B, H, W, I]`.

    H = stride (h - 1) + kh - 2 padding, and W likewise.
    kernel: `[kh, kw, I, O]`, that of the convolution from `[B, H, W, I]` to `[B, h, w, O]`.
    padding: zeros on every side of those images. Types and derivatives as in `conv`.

    Raises:
      ValueError: if the channels of image and kernel differ.
    """
    if x.shape[-1] != kernel.shape[3]:
        raise ValueError(f"image has {x.shape[-1]} channels, the transpose of {kernel.shape} expects {kernel.shape[3]}")
    image = tuple(stride * (n - 1) + k - 2 * padding for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True))
    return input_gradient(Window(image, kernel.shape[:2], stride, ((padding, padding),) * 2), x, kernel)


# Measured on one AVX-512 core (Sapphire Rapids, float32, XLA of jaxlib 0.10), milliseconds of processor time.
# Single readings of trial loops on a busy machine, some from before the last form of the input gradient: they ranked
# the forms below, and are no benchmark (launch/bench.py is).
# Products at the core's matmul rate of 140 GFLOP/s would take "ideal"; 32 images, 3x3 kernels.
#   pixels, channels     ideal   forward   input gradient   weight gradient
#   32, 64 -> 64          17.3   18 plain        18 plain       49 winograd (patches 83)
#   32, 64 -> 128, / 2     8.6   10 plain        11 by phase    21 patches by row (in one 34)
#   16, 128 -> 128        17.3   14 winograd     14 winograd    20 winograd (patches 64)
#   16, 128 -> 256, / 2    8.6   10 plain        11 by phase    12 patches
#    4, 512 -> 512        17.3   15 winograd     16 winograd    12 winograd (patches 20)
# For 64 images of 2 x 2 and 256 channels on two busy cores: plain 85, patches 3.6, dense 1.7.
# Also on a Zen 5 core (AVX-512, 230 GFLOP/s), weight gradients of 12 images of 28 x 28, with the image or the output
# gradient patched: 64 -> 1 channel 2.7 or 0.2, 128 -> 64 by winograd 10.9 or 8.2. Input gradient of 64 grey images of
# 28 x 28, 7x7 kernels, stride 2: by phase 2.9, plain 1.4.
# And on two such cores, inside a loop, 3x3 kernels, milliseconds:
#   images, pixels, channels        form               weight gradient
#   100, 32 x 32,  3 -> 32          plain 5.1, patches 1.1
#   100, 32 x 32, 32 ->  3          plain 2.2, few outputs 1.4
#    64, 28 x 28, 64 ->  1          plain 2.0, few outputs 0.3
#   100, 32 x 32, 32 -> 32                             winograd 10.9, in groups of 10 images 7.6
#   100, 32 x 32, 64 -> 64                             winograd 33, in groups of 5 images 26
# Likewise 4x4 kernels of stride 2, 32 -> 32: weight gradient by patches 9.1, by cells 8.0, in groups of 10 images 5.2.
def choose(window: Window, inputs: int, outputs: int) -> Form:
    """Returns the form that measures fastest for this window and these channels."""
    pixels, narrow, taps = prod(window.image), min(inputs, outputs), prod(window.kernel)
    if window.kernel == (1, 1):
        return forms.patches
    if pixels <= 4:
        return forms.dense
    if window.stride == 1 and outputs * taps <= inputs:
        return forms.few_outputs
    if window.stride == 1 and inputs * taps < 32:
        return forms.patches
    if _has_winograd(window) and (narrow >= 128 or (narrow >= 64 and pixels <= 64)):
        return forms.winograd
    if pixels < 64 and narrow >= 16:
        return forms.patches
    return forms.spare_row if _has_spare_row(window) and narrow > 16 else forms.plain


def choose_weights(window: Window, inputs: int, outputs: int) -> Form:
    """Returns the form of the weight gradient that measures fastest."""
    if choose(window, inputs, outputs) is forms.dense:
        return weight_gradients.dense
    if outputs < 16 and inputs > outputs and _has_winograd(window):
        return weight_gradients.few_outputs
    if _has_winograd(window) and min(inputs, outputs) >= 16:
        return partial(weight_gradients.by_groups, weight_gradients.winograd)
    if window.stride > 1 and window.kernel == (2 * window.stride,) * 2:
        return partial(weight_gradients.by_groups, weight_gradients.cells)
    return weight_gradients.patches


def _has_spare_row(window: Window) -> bool:
    return window.stride == 1 and window.output == window.image


def _has_winograd(window: Window) -> bool:
    return window.kernel[0] == 3 and window.stride == 1 and min(window.output) >= forms.TILE - 1


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(window: Window, x: Array, kernel: Array) -> Array:
    if not platform.is_cpu():
        return forms.one_type(window, x, kernel)
    return choose(window, *kernel.shape[2:])(window, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def input_gradient(window: Window, g: Array, kernel: Array) -> Array:
    """Return the gradient of `conv`'s images from that of its result, `[B, h, w, O]` to `[B, H, W, I]`."""
    if not platform.is_cpu():
        return forms.input_gradient_one_type(window, g, kernel)
    form = choose(window, *kernel.shape[2:])
    if form is forms.dense:
        return forms.input_gradient_dense(window, g, kernel)
    if kernel.shape[2] == 1 and window.stride > 1:
        return forms.input_gradient_plain(window, g, kernel)
    if window.image == window.output and choose(window, *kernel.shape[:1:-1]) is forms.winograd:
        return forms.input_gradient_winograd(window, g, kernel)

    def stride_one(window: Window, x: Array, kernel: Array) -> Array:
        return choose(window, *kernel.shape[2:])(window, x, kernel)

    return forms.input_gradient_by_phase(window, g, kernel, stride_one)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weight_gradient(window: Window, dtype: jnp.dtype, x: Array, g: Array) -> Array:
    """The kernel's gradient, in the type of g; `dtype` is that of the factors on a GPU or TPU."""
    if not platform.is_cpu():
        return weight_gradients.one_type(window, dtype, x, g)
    return choose_weights(window, x.shape[-1], g.shape[-1])(window, x, g)


def _weight_gradient_backward(window: Window, dtype: jnp.dtype, saved: tuple[Array, Array], v: Array):
    v = v if platform.is_cpu() else v.astype(dtype)
    return input_gradient(window, saved[1], v), _forward(window, saved[0], v)


_forward.defvjp(
    lambda window, x, kernel: (_forward(window, x, kernel), (x, kernel)),
    lambda window, saved, g: (
        input_gradient(window, g, saved[1]),
        _weight_gradient(window, saved[1].dtype, saved[0], g).astype(saved[1].dtype),
    ),
)
input_gradient.defvjp(
    lambda window, g, kernel: (input_gradient(window, g, kernel), (g, kernel)),
    lambda window, saved, c: (
        _forward(window, c, saved[1]),
        _weight_gradient(window, saved[1].dtype, c, saved[0]).astype(saved[1].dtype),
    ),
)
_weight_gradient.defvjp(
    lambda window, dtype, x, g: (_weight_gradient(window, dtype, x, g), (x, g)), _weight_gradient_backward
)
