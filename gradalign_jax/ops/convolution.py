"""A convolution with derivatives of every order, each computed in the form that is fastest on its platform.

A convolution y(x, w), its input gradient and its weight gradient are three bilinear maps, and the derivatives of each
are the other two. Each is therefore a `custom_vjp` of its own, which gives derivatives of every order (the alignment
penalty takes two). On a CPU the form depends on the shape. On a GPU or TPU it is XLA's own convolution, written so that
XLA recognizes all three: factors and result have one type, and an input gradient's kernel is flipped where it is used.
"""

from functools import partial
from math import prod

import jax
import jax.numpy as jnp

from gradalign_jax.ops import forms, input_gradients, platform, weight_gradients
from gradalign_jax.ops.window import Form, Pads, Window, window_of
from gradalign_jax.ops.winograd import F43
from gradalign_jax.types import Array


def conv(x: Array, kernel: Array, stride: int = 1, padding: int | Pads = 0) -> Array:
    """Return the cross-correlation of images `[B, H, W, I]` with a kernel `[kh, kw, I, O]`, `[B, h, w, O]`.

    Reverse-mode derivatives of every order are supported, forward mode is not. On a CPU it can replace
    `lax.conv_general_dilated` in any model, and it is faster for most shapes.

    Args:
      x: images. The result has their type.
      kernel: its type is that of the products' factors; sums are in float32.
      stride: of rows and columns.
      padding: zeros on every side, or ((top, bottom), (left, right)).

    Returns:
      Images of h = (H + top + bottom - kh) // stride + 1 rows; columns likewise.

    Raises:
      ValueError: if the channels of image and kernel differ.

    Example:
      >>> from jax import lax
      >>> x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16))
      >>> ours = conv(x, kernel, stride=2, padding=1)
      >>> ours.shape
      (2, 4, 4, 16)
      >>> layout = ("NHWC", "HWIO", "NHWC")
      >>> xla = lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout)
      >>> bool(jnp.allclose(ours, xla))
      True
      >>> jax.grad(lambda w: conv(x, w, padding=1).sum())(kernel).shape
      (3, 3, 3, 16)
    """
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"image has {x.shape[-1]} channels, kernel {kernel.shape} reads {kernel.shape[2]}: make them equal"
        )
    return _forward(window_of(x.shape, kernel.shape, stride, padding), x, kernel)


def conv_transpose(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Return the transpose of `conv`'s linear map, from `[B, h, w, O]` to `[B, H, W, I]`.

    Types and derivatives are those of `conv`.

    Args:
      x: images `[B, h, w, O]`.
      kernel: `[kh, kw, I, O]`, the kernel of the convolution from `[B, H, W, I]` to `[B, h, w, O]`.
      stride: of that convolution.
      padding: zeros on every side in that convolution.

    Returns:
      Images of H = stride (h - 1) + kh - 2 padding rows; columns likewise.

    Raises:
      ValueError: if the channels of image and kernel differ.
    """
    if x.shape[-1] != kernel.shape[3]:
        raise ValueError(
            f"image has {x.shape[-1]} channels, the transpose of kernel {kernel.shape} reads {kernel.shape[3]}: "
            "make them equal"
        )
    sizes = zip(x.shape[1:3], kernel.shape[:2], strict=True)
    rows, columns = (stride * (n - 1) + k - 2 * padding for n, k in sizes)
    window = Window((rows, columns), (kernel.shape[0], kernel.shape[1]), stride, ((padding, padding),) * 2)
    return input_gradient(window, x, kernel)


# Measured: launch/speed.md, "How the CPU's convolution forms were chosen".
def choose(window: Window, inputs: int, outputs: int) -> Form:
    """Return the form that measures fastest on a CPU for this window and these channels."""
    pixels, narrow, taps = prod(window.image), min(inputs, outputs), prod(window.kernel)
    if window.kernel == (1, 1):
        return forms.patches
    if pixels <= 4:
        return forms.dense
    if window.stride == 1 and outputs * taps <= inputs:
        return forms.few_outputs
    if window.stride == 1 and inputs > 1 and inputs * taps < 32:
        return forms.patches
    if _has_winograd(window) and (narrow >= 128 or (narrow >= 64 and pixels <= 64)):
        return forms.winograd
    if pixels < 64 and narrow >= 16:
        return forms.patches
    return forms.spare_row if _has_spare_row(window) and narrow > 32 else forms.plain


def choose_weights(window: Window, inputs: int, outputs: int) -> Form:
    """Return the form of the weight gradient that measures fastest on a CPU."""
    if choose(window, inputs, outputs) is forms.dense:
        return weight_gradients.dense
    if outputs < 16 and inputs > outputs and _has_winograd(window):
        return weight_gradients.few_outputs
    if _has_winograd(window) and min(inputs, outputs) >= 16:
        return partial(weight_gradients.in_groups, weight_gradients.winograd)
    if window.stride > 1 and window.kernel == (2 * window.stride,) * 2:
        return partial(weight_gradients.in_groups, weight_gradients.cells)
    return weight_gradients.patches


def _has_spare_row(window: Window) -> bool:
    return window.stride == 1 and window.output == window.image


def _has_winograd(window: Window) -> bool:
    return window.kernel[0] == 3 and window.stride == 1 and min(window.output) >= F43.tile - 1


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(window: Window, x: Array, kernel: Array) -> Array:
    if not platform.is_cpu():
        return forms.accelerator(window, x, kernel)
    return _cpu_forward(window, x, kernel)


# Jitted, so that each shape is traced and lowered once however often a network uses it. XLA inlines the function.
@partial(jax.jit, static_argnums=(0,))
def _cpu_forward(window: Window, x: Array, kernel: Array) -> Array:
    return choose(window, *kernel.shape[2:])(window, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def input_gradient(window: Window, g: Array, kernel: Array) -> Array:
    """Return the gradient of `conv`'s images from that of its result, `[B, h, w, O]` to `[B, H, W, I]`."""
    if not platform.is_cpu():
        return input_gradients.accelerator(window, g, kernel)
    return _cpu_input_gradient(window, g, kernel)


@partial(jax.jit, static_argnums=(0,))
def _cpu_input_gradient(window: Window, g: Array, kernel: Array) -> Array:
    form = choose(window, *kernel.shape[2:])
    if form is forms.dense:
        return input_gradients.dense(window, g, kernel)
    if kernel.shape[2] == 1 and window.stride > 1:
        return input_gradients.plain(window, g, kernel)
    if window.image == window.output and choose(window, *kernel.shape[:1:-1]) is forms.winograd:
        return input_gradients.winograd(window, g, kernel)

    def stride_one(window: Window, x: Array, kernel: Array) -> Array:
        return choose(window, *kernel.shape[2:])(window, x, kernel)

    return input_gradients.by_phase(window, g, kernel, stride_one)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weight_gradient(window: Window, dtype: jnp.dtype, x: Array, g: Array) -> Array:
    """Return the kernel's gradient in the type of g; on a GPU or TPU the factors have type `dtype`."""
    if not platform.is_cpu():
        return weight_gradients.accelerator(window, dtype, x, g)
    return _cpu_weight_gradient(window, x, g)


@partial(jax.jit, static_argnums=(0,))
def _cpu_weight_gradient(window: Window, x: Array, g: Array) -> Array:
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
