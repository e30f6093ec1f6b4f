"""Linear layers whose weights are constants: prepared once, differentiable in their input alone.

The projection onto a generator's images runs the same weights hundreds of times, an attack tens of times, so each layer
is stored beforehand as its products need it, and as those of its input gradient do. On a CPU the generator's layers are

    3x3 convolution                16 products for 4 pixels, not 36 (Winograd's F(2, 3) along rows and columns)
    doubling, then 3x3             9 products for 4 pixels, not 36
    few outputs                    one product for all taps, then sums of shifted images

each exact up to float32 rounding (1e-6 of the largest value). On a GPU or TPU they are plain convolutions whose results
have the type of their factors, after a doubling four of 2x2 at low resolution. Kernels are stored there as
`[O, kh, kw, I]`, the layout that a GPU's convolutions of bfloat16 images read.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from gradalign_jax.ops import convolution, forms, platform
from gradalign_jax.ops.forms import Pads, Window
from gradalign_jax.types import Array

_LAYOUT = ("NHWC", "OHWI", "NHWC")
_TRANSPOSED = ("NHWC", "IHWO", "NHWC")
# Winograd's F(2, 3): two outputs of a three-tap filter from three sums and four products (arXiv:1509.09308).
_FROM_IMAGE = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1))
_FROM_KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_TO_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, 1))
# A doubling and three taps w, with e_i = x_(i-1) - x_i: y_2i = S x_i + w0 e_i, y_(2i+1) = S x_i - w2 e_(i+1), S = Σw.
_FROM_STEPS = ((1, 1, 1), (1, 0, 0), (0, 0, -1))
# The same as two taps on x_(i-1), x_i for even outputs and on x_i, x_(i+1) for odd ones.
_PHASES = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))
# And its input gradient, four taps of stride 2.
_STRIDED = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))
_FEW = 16  # outputs below which all taps are one product


class Frozen(NamedTuple):
    """A linear map and its transpose, each a function bound to its weights; a tree of arrays to JAX."""

    forward: Partial
    backward: Partial


@jax.custom_vjp
def apply(layer: Frozen, x: Array) -> Array:
    """The layer's map of x, in x's precision; products are taken in that of the weights. No gradient reaches those."""
    return layer.forward(x)


apply.defvjp(lambda layer, x: (layer.forward(x), layer), lambda layer, g: (None, layer.backward(g)))


class Kernel(NamedTuple):
    """A convolution's constant kernel; on a CPU `forward` alone, as `[kh, kw, I, O]`.

    forward: `[O, kh, kw, I]`. backward: the flipped kernel `[I, kh, kw, O]`; None for more than 1x1 taps with a stride,
    whose input gradient XLA computes from `forward`.
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
    """Return `convolution.conv` of images `[B, H, W, I]` with a prepared kernel; no gradient reaches the kernel."""
    shape = kernel.forward.shape if platform.is_cpu() else [kernel.forward.shape[axis] for axis in (1, 2, 3, 0)]
    return _conv(convolution.window_of(x.shape, shape, stride, padding), x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(window: Window, x: Array, kernel: Kernel) -> Array:
    if platform.is_cpu():
        return convolution.conv(x, kernel.forward, window.stride, window.pads)
    return _plain(kernel.forward, x, window.stride, window.pads)


def _conv_backward(window: Window, kernel: Kernel, g: Array) -> tuple[Array, None]:
    if platform.is_cpu():
        return convolution.input_gradient(window, g, kernel.forward), None
    if kernel.backward is not None and window.stride == 1:
        return _plain(kernel.backward, g, pads=forms.turned_window(window).pads), None
    if kernel.backward is not None:  # of 1x1: what lies between the strides has no gradient
        found = _plain(kernel.backward, g, pads=((0, 0), (0, 0)))
        spread = [
            (0, n - 1 - window.stride * (m - 1), window.stride - 1)
            for n, m in zip(window.image, window.output, strict=True)
        ]
        return lax.pad(found, jnp.zeros((), found.dtype), ((0, 0, 0), *spread, (0, 0, 0))), None
    # The flip stands at the convolution, where XLA recognises an input gradient and does neither flip nor dilate.
    flipped = lax.rev(lax.optimization_barrier(kernel.forward), (1, 2))
    result = lax.conv_general_dilated(
        *(g.astype(flipped.dtype), flipped, (1, 1), forms.pads_of_input_gradient(window)),
        lhs_dilation=(window.stride, window.stride),
        dimension_numbers=_TRANSPOSED,
    )
    return result.astype(g.dtype), None


_conv.defvjp(lambda window, x, kernel: (_conv(window, x, kernel), kernel), _conv_backward)


@jax.custom_vjp
def relu(x: Array) -> Array:
    """Return max(x, 0). Its gradient reads the result alone, so that a convolution can end in bias, sum and ReLU."""
    return jnp.maximum(x, 0)


# "y == 0" and not "y > 0", which XLA would simplify to a question about x and so keep x.
relu.defvjp(lambda x: (jnp.maximum(x, 0),) * 2, lambda y, g: (jnp.where(y == 0, 0, g),))


def dense(matrix: np.ndarray, dtype: jnp.dtype = jnp.float32) -> Frozen:
    """x `[..., I]` -> x @ matrix `[I, O]`."""
    return Frozen(_bind(_product, matrix, dtype), _bind(_product, matrix.T, dtype))


def conv3x3(kernel: np.ndarray, dtype: jnp.dtype = jnp.float32) -> Frozen:
    """x `[B, H, W, I]` -> the cross-correlation with kernel `[3, 3, I, O]`, zero padded by 1; H and W are even."""
    inputs, outputs = kernel.shape[2:]
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    if not platform.is_cpu():
        return Frozen(*(_bind(_plain, each.transpose(3, 0, 1, 2), dtype) for each in (kernel, flipped)))
    if outputs < _FEW:
        taps = kernel.transpose(2, 0, 1, 3).reshape(inputs, -1)
        return Frozen(_bind(_few_outputs, taps, dtype), _bind(_few_inputs, flipped.reshape(-1, inputs), dtype))
    parts = [_spread(kernel, _FROM_KERNEL, _FROM_KERNEL) for kernel in (kernel, flipped)]
    return Frozen(*(_bind(_winograd, part, dtype) for part in parts))


def doubling_conv3x3(kernel: np.ndarray, dtype: jnp.dtype = jnp.float32) -> Frozen:
    """x `[B, H, W, I]` -> each pixel four times, then `conv3x3`: `[B, 2H, 2W, O]`."""
    if not platform.is_cpu():
        taps = np.einsum("par,qbs,rsio->pqoabi", _PHASES, _PHASES, kernel)
        strided = _spread(kernel.swapaxes(2, 3), _STRIDED, _STRIDED).transpose(3, 0, 1, 2)
        return Frozen(_bind(_by_phase, taps, dtype), _bind(_strided, strided, dtype))
    taps = _spread(kernel, _FROM_STEPS, _FROM_STEPS)
    # On pixels, on differences of columns, of rows, and of both.
    groups = (taps[0, :1], taps[0, 1:], taps[1:, 0], [*taps[1, 1:], *taps[2, 1:]])
    matrices = [np.concatenate([*group], axis=1) for group in groups]
    return Frozen(_bind(_doubled, matrices, dtype), _bind(_halved, [matrix.T for matrix in matrices], dtype))


def _bind(form: Callable, weights: np.ndarray | Sequence[np.ndarray], dtype: jnp.dtype) -> Partial:
    return Partial(form, jax.tree.map(lambda w: jnp.asarray(w, dtype), weights))


def _spread(kernel: np.ndarray, rows: Sequence, columns: Sequence) -> np.ndarray:
    """Returns the combinations of a kernel's taps along rows and columns."""
    return np.einsum("ar,bs,rsio->abio", rows, columns, kernel)


def _product(matrix: Array, x: Array) -> Array:
    return jnp.matmul(x.astype(matrix.dtype), matrix, preferred_element_type=x.dtype)


def _plain(kernel: Array, x: Array, stride: int = 1, pads: Pads = ((1, 1), (1, 1))) -> Array:
    factor, strides = x.astype(kernel.dtype), (stride, stride)
    return lax.conv_general_dilated(factor, kernel, strides, pads, dimension_numbers=_LAYOUT).astype(x.dtype)


def _by_phase(kernels: Array, x: Array) -> Array:
    pads = ((1, 0), (0, 1))
    phases = [[_plain(kernels[a, b], x, pads=(pads[a], pads[b])) for b in range(2)] for a in range(2)]
    return _interleave(phases)


def _strided(kernel: Array, g: Array) -> Array:
    return _plain(kernel, g, stride=2)


def _combine(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    return sum(w * a for w, a in zip(weights, arrays, strict=True) if w)


def _interleave(phases: Sequence[Sequence[Array]]) -> Array:
    """Puts phases[a][b] `[B, H, W, C]` at rows 2i + a and columns 2j + b."""
    rows = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    batch, height, _, width, _, channels = rows.shape
    return rows.reshape(batch, 2 * height, 2 * width, channels)


def _winograd(kernel: Array, x: Array) -> Array:
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    tiles = [x[:, row : row + height - 1 : 2] for row in range(4)]
    products = []
    for weights, row_kernel in zip(_FROM_IMAGE, kernel, strict=True):
        band = _combine(weights, tiles)
        cells = [band[:, :, column : column + width - 1 : 2] for column in range(4)]
        parts = [_product(row_kernel[b], _combine(_FROM_IMAGE[b], cells)) for b in range(4)]
        products.append([_combine(weights, parts) for weights in _TO_OUTPUT])
    columns = zip(*products, strict=True)
    outputs = [[_combine(weights, column) for weights in _TO_OUTPUT] for column in columns]
    return _interleave(list(zip(*outputs, strict=True)))


def _few_outputs(taps: Array, x: Array) -> Array:
    height, width = x.shape[1:3]
    seen = _product(taps, x).reshape(*x.shape[:3], 9, -1)
    seen = jnp.pad(seen, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    return sum(seen[:, t // 3 : t // 3 + height, t % 3 : t % 3 + width, t] for t in range(9))


def _few_inputs(taps: Array, x: Array) -> Array:
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    views = [x[:, row : row + height, column : column + width] for row in range(3) for column in range(3)]
    return _product(taps, jnp.concatenate(views, axis=-1))


def _doubled(matrices: Sequence[Array], x: Array) -> Array:
    height, width, outputs = *x.shape[1:3], matrices[0].shape[1]
    x_rows, x_columns = (jnp.pad(x, ((0, 0), *pads, (0, 0))) for pads in (((1, 1), (0, 0)), ((0, 0), (1, 1))))
    both = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = x_columns[:, :, :-1] - x_columns[:, :, 1:]
    rows = x_rows[:, :-1] - x_rows[:, 1:]
    both = both[:, :-1] - both[:, 1:]
    both = both[:, :, :-1] - both[:, :, 1:]
    level, columns, rows, both = (_product(m, a) for m, a in zip(matrices, (x, columns, rows, both), strict=True))

    def part(a: int, b: int) -> Array:
        of = [slice(n * outputs, (n + 1) * outputs) for n in (a, b, 2 * a + b)]
        steps = rows[:, a : a + height, :, of[0]] + columns[:, :, b : b + width, of[1]]
        return level + steps + both[:, a : a + height, b : b + width, of[2]]

    return _interleave([[part(a, b) for b in range(2)] for a in range(2)])


def _halved(matrices: Sequence[Array], g: Array) -> Array:
    batch, height, width, channels = g.shape
    phases = g.reshape(batch, height // 2, 2, width // 2, 2, channels)
    pads, none = ((0, 1), (1, 0)), (0, 0)

    def placed(array: Array, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
        return jnp.pad(array, (none, rows, columns, none))

    level = phases.sum((2, 4))
    columns = jnp.concatenate([placed(phases[:, :, :, :, b].sum(2), none, pads[b]) for b in range(2)], axis=-1)
    rows = jnp.concatenate([placed(phases[:, :, a].sum(3), pads[a], none) for a in range(2)], axis=-1)
    both = [placed(phases[:, :, a, :, b], pads[a], pads[b]) for a in range(2) for b in range(2)]
    both = jnp.concatenate(both, axis=-1)
    level, columns, rows, both = (_product(m, a) for m, a in zip(matrices, (level, columns, rows, both), strict=True))
    columns += both[:, 1:] - both[:, :-1]
    return level + (rows[:, 1:] - rows[:, :-1]) + (columns[:, :, 1:] - columns[:, :, :-1])
