"""Linear layers whose weights are constants: prepared once, differentiable in their input alone.

The projection onto a generator's images applies the same weights hundreds of times, an attack tens of times, so each
layer stores its weights in the layout that its products read, and again in the layout of its input gradient's products.
On a CPU the generator's layers are

    3x3 convolution                16 products for 4 pixels instead of 36 (Winograd's F(2, 3) along rows and columns)
    doubling, then 3x3             9 products for 4 pixels instead of 36
    few outputs                    one product for all taps, then sums of shifted images

each exact up to float32 rounding (1e-6 of the largest value). On a GPU or TPU they are plain convolutions whose results
have the type of their factors; a doubling and its convolution are four 2x2 convolutions at low resolution. Kernels are
stored there as `[O, kh, kw, I]`, the layout that a GPU's convolutions of bfloat16 images read.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from gradalign_jax.ops import convolution, frozen_forms, input_gradients, platform
from gradalign_jax.ops.window import Pads, Window, gradient_window, window_of
from gradalign_jax.ops.winograd import F23
from gradalign_jax.types import Array

# With e_i = x_(i-1) - x_i and S = Σw, doubled pixels under three taps w are y_2i = S x_i + w0 e_i and
# y_(2i+1) = S x_i - w2 e_(i+1). Rows: the weights of x_i, e_i and e_(i+1).
_FROM_STEPS = ((1, 1, 1), (1, 0, 0), (0, 0, -1))
# The same as two taps: on x_(i-1), x_i for even outputs and on x_i, x_(i+1) for odd outputs.
_PHASES = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))
# Its input gradient: four taps of stride 2.
_STRIDED = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))
_FEW = 16  # with fewer outputs, all taps are one product


class Frozen(NamedTuple):
    """A linear map and its transpose, each a function bound to its weights; a tree of arrays to JAX."""

    forward: Partial
    backward: Partial


@jax.custom_vjp
def apply(layer: Frozen, x: Array) -> Array:
    """Return the layer's map of x, in the type of x; factors have the type of the weights, which get no gradient."""
    return layer.forward(x)


# The derivative of the transpose is the map itself, in its prepared form.
apply.defvjp(
    lambda layer, x: (layer.forward(x), layer), lambda layer, g: (None, apply(Frozen(layer.backward, layer.forward), g))
)


def dense(matrix: np.ndarray, dtype: jnp.dtype = jnp.float32) -> Frozen:
    """Build x `[..., I]` -> x @ matrix `[I, O]`."""
    return Frozen(_bind(frozen_forms.dense, matrix, dtype), _bind(frozen_forms.dense, matrix.T, dtype))


def conv3x3(kernel: np.ndarray, dtype: jnp.dtype = jnp.float32) -> Frozen:
    """Build x `[B, H, W, I]` -> the cross-correlation with a kernel `[3, 3, I, O]`, zero padded by 1; H and W even."""
    inputs, outputs = kernel.shape[2:]
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    if not platform.is_cpu():
        return Frozen(*(_bind(frozen_forms.plain, each.transpose(3, 0, 1, 2), dtype) for each in (kernel, flipped)))
    if outputs < _FEW:
        taps = kernel.transpose(2, 0, 1, 3).reshape(inputs, -1)
        backward = _bind(frozen_forms.few_inputs, flipped.reshape(-1, inputs), dtype)
        return Frozen(_bind(frozen_forms.few_outputs, taps, dtype), backward)
    parts = [_tap_sums(kernel, F23.from_kernel) for kernel in (kernel, flipped)]
    return Frozen(*(_bind(frozen_forms.winograd, part, dtype) for part in parts))


def doubling_conv3x3(kernel: np.ndarray, dtype: jnp.dtype = jnp.float32) -> Frozen:
    """Build x `[B, H, W, I]` -> each pixel four times, then `conv3x3`: `[B, 2H, 2W, O]`."""
    if not platform.is_cpu():
        taps = np.einsum("par,qbs,rsio->pqoabi", _PHASES, _PHASES, kernel)
        strided = _tap_sums(kernel.swapaxes(2, 3), _STRIDED).transpose(3, 0, 1, 2)
        return Frozen(_bind(frozen_forms.by_phase, taps, dtype), _bind(frozen_forms.strided, strided, dtype))
    taps = _tap_sums(kernel, _FROM_STEPS)
    # The matrices of pixels `[I, O]`, of differences of columns and of rows `[I, 2 O]`, and of both `[I, 4 O]`.
    groups = (taps[0, :1], taps[0, 1:], taps[1:, 0], [*taps[1, 1:], *taps[2, 1:]])
    matrices = [np.concatenate([*group], axis=1) for group in groups]
    backward = _bind(frozen_forms.doubled_transpose, [matrix.T for matrix in matrices], dtype)
    return Frozen(_bind(frozen_forms.doubled, matrices, dtype), backward)


def _bind(form: Callable, weights: np.ndarray | Sequence[np.ndarray], dtype: jnp.dtype) -> Partial:
    return Partial(form, jax.tree.map(lambda w: jnp.asarray(w, dtype), weights))


def _tap_sums(kernel: np.ndarray, table: Sequence[Sequence[float]]) -> np.ndarray:
    """Return a table's combinations of a kernel's taps along rows and columns, `[3, 3, I, O]` to `[n, n, I, O]`."""
    return np.einsum("ar,bs,rsio->abio", table, table, kernel)


class Kernel(NamedTuple):
    """A convolution's constant kernel; on a CPU only `forward`, as `[kh, kw, I, O]`.

    forward: `[O, kh, kw, I]`.
    backward: the flipped kernel `[I, kh, kw, O]`; None for strided kernels of more than 1x1 taps, whose input gradient
      XLA computes from `forward`.
    """

    forward: Array
    backward: Array | None


def kernel(values: Array, dtype: jnp.dtype, stride: int = 1) -> Kernel:
    """Prepare a kernel `[kh, kw, I, O]` for `conv` with factors of type `dtype`."""
    values = values.astype(dtype)
    if platform.is_cpu():
        return Kernel(values, None)
    flipped = values[::-1, ::-1].transpose(2, 0, 1, 3) if stride == 1 or values.shape[:2] == (1, 1) else None
    return Kernel(values.transpose(3, 0, 1, 2), flipped)


def conv(x: Array, kernel: Kernel, stride: int = 1, padding: int | Pads = 0) -> Array:
    """Return `convolution.conv` of images `[B, H, W, I]` with a prepared kernel, which gets no gradient."""
    shape = kernel.forward.shape if platform.is_cpu() else [kernel.forward.shape[axis] for axis in (1, 2, 3, 0)]
    return _conv(window_of(x.shape, shape, stride, padding), x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(window: Window, x: Array, kernel: Kernel) -> Array:
    if platform.is_cpu():
        return convolution.conv(x, kernel.forward, window.stride, window.pads)
    return frozen_forms.plain(kernel.forward, x, window.stride, window.pads)


def _conv_backward(window: Window, kernel: Kernel, g: Array) -> tuple[Array, None]:
    if platform.is_cpu():
        return convolution.input_gradient(window, g, kernel.forward), None
    if kernel.backward is None:
        return input_gradients.accelerator(window, g, kernel.forward, layout="IHWO"), None
    if window.stride == 1:
        return frozen_forms.plain(kernel.backward, g, pads=gradient_window(window).pads), None
    # A kernel of 1x1: the pixels between the strides have no gradient.
    gradient = frozen_forms.plain(kernel.backward, g, pads=((0, 0), (0, 0)))
    spread = [
        (0, n - 1 - window.stride * (m - 1), window.stride - 1)
        for n, m in zip(window.image, window.output, strict=True)
    ]
    return lax.pad(gradient, jnp.zeros((), gradient.dtype), ((0, 0, 0), *spread, (0, 0, 0))), None


_conv.defvjp(lambda window, x, kernel: (_conv(window, x, kernel), kernel), _conv_backward)
