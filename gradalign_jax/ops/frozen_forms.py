"""The products of the layers of frozen.py, each a function of (weights, images).

`plain`, `by_phase` and `strided` are for a GPU or TPU, the others for a CPU. Factors have the type of the weights,
results that of the images.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from gradalign_jax.ops.window import Pads
from gradalign_jax.ops.winograd import F23, combine
from gradalign_jax.types import Array

_LAYOUT = ("NHWC", "OHWI", "NHWC")


def dense(matrix: Array, x: Array) -> Array:
    """Return x `[..., I]` @ matrix `[I, O]`."""
    return jnp.matmul(x.astype(matrix.dtype), matrix, preferred_element_type=x.dtype)


def plain(kernel: Array, x: Array, stride: int = 1, pads: Pads = ((1, 1), (1, 1))) -> Array:
    """Return XLA's own convolution of `[B, H, W, I]` with a kernel `[O, kh, kw, I]`."""
    factor, strides = x.astype(kernel.dtype), (stride, stride)
    return lax.conv_general_dilated(factor, kernel, strides, pads, dimension_numbers=_LAYOUT).astype(x.dtype)


def by_phase(kernels: Array, x: Array) -> Array:
    """Return doubling and 3x3 convolution as one 2x2 convolution for each phase: kernels `[2, 2, O, 2, 2, I]`."""
    pads = ((1, 0), (0, 1))
    phases = [[plain(kernels[a, b], x, pads=(pads[a], pads[b])) for b in range(2)] for a in range(2)]
    return _interleave(phases)


def strided(kernel: Array, g: Array) -> Array:
    """Return the transpose of `by_phase`, a convolution of stride 2 with a kernel `[I, 4, 4, O]`."""
    return plain(kernel, g, stride=2)


def winograd(kernel: Array, x: Array) -> Array:
    """Return the 3x3 convolution by F(2, 3) along rows and columns: kernel `[4, 4, I, O]`, x `[B, H, W, I]`."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Row 0 ... 3 of every tile of two output rows: 4 x [B, H/2, W + 2, I]
    rows = [x[:, row : row + height - 1 : 2] for row in range(4)]
    products = []
    for weights, row_kernel in zip(F23.from_input, kernel, strict=True):
        band = combine(weights, rows)  # [B, H/2, W + 2, I]
        # Column 0 ... 3 of every tile of the band: 4 x [B, H/2, W/2, I]
        columns = [band[:, :, column : column + width - 1 : 2] for column in range(4)]
        # The 4 products of the band: [B, H/2, W/2, O] each
        parts = [dense(row_kernel[b], combine(F23.from_input[b], columns)) for b in range(4)]
        # Its even and odd output columns: 2 x [B, H/2, W/2, O]
        products.append([combine(weights, parts) for weights in F23.to_output])
    # The 4 bands of each output column to its even and odd output rows: [2 columns][2 rows] of [B, H/2, W/2, O]
    outputs = [[combine(weights, column) for weights in F23.to_output] for column in zip(*products, strict=True)]
    return _interleave(list(zip(*outputs, strict=True)))


def few_outputs(taps: Array, x: Array) -> Array:
    """Return the 3x3 convolution as sums of shifted images: taps `[I, 9 O]`, x `[B, H, W, I]`."""
    height, width = x.shape[1:3]
    products = dense(taps, x).reshape(*x.shape[:3], 9, -1)  # [B, H, W, 9, O]
    products = jnp.pad(products, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    return sum(products[:, t // 3 : t // 3 + height, t % 3 : t % 3 + width, t] for t in range(9))  # type: ignore[return-value]  # sum starts at 0


def few_inputs(taps: Array, x: Array) -> Array:
    """Return the 3x3 convolution as one product of patches: taps `[9 I, O]`, x `[B, H, W, I]`."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    views = [x[:, row : row + height, column : column + width] for row in range(3) for column in range(3)]
    return dense(taps, jnp.concatenate(views, axis=-1))


def doubled(matrices: Sequence[Array], x: Array) -> Array:
    """Return doubling and 3x3 convolution from pixels and differences of neighbors: `[B, H, W, I]` to `[B, 2H, 2W, O]`.

    Args:
      matrices: of pixels `[I, O]`, of differences of columns and of rows `[I, 2 O]`, and of both `[I, 4 O]`.
      x: images.
    """
    height, width, outputs = *x.shape[1:3], matrices[0].shape[1]
    # Differences of columns [B, H, W + 1, I], of rows [B, H + 1, W, I] and of both [B, H + 1, W + 1, I].
    x_rows, x_columns = (jnp.pad(x, ((0, 0), *pads, (0, 0))) for pads in (((1, 1), (0, 0)), ((0, 0), (1, 1))))
    both = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = x_columns[:, :, :-1] - x_columns[:, :, 1:]
    rows = x_rows[:, :-1] - x_rows[:, 1:]
    both = both[:, :-1] - both[:, 1:]
    both = both[:, :, :-1] - both[:, :, 1:]
    # The same sizes with O, 2 O (left and right, above and below) and 4 O channels.
    level, columns, rows, both = (dense(m, a) for m, a in zip(matrices, (x, columns, rows, both), strict=True))

    def phase(a: int, b: int) -> Array:
        """Return the outputs at rows 2i + a and columns 2j + b, `[B, H, W, O]`."""
        row, column, corner = (slice(n * outputs, (n + 1) * outputs) for n in (a, b, 2 * a + b))
        steps = rows[:, a : a + height, :, row] + columns[:, :, b : b + width, column]
        return level + steps + both[:, a : a + height, b : b + width, corner]

    return _interleave([[phase(a, b) for b in range(2)] for a in range(2)])


def doubled_transpose(matrices: Sequence[Array], g: Array) -> Array:
    """Return the transpose of `doubled`, `[B, 2H, 2W, O]` to `[B, H, W, I]`, from the transposed matrices."""
    batch, height, width, channels = g.shape
    phases = g.reshape(batch, height // 2, 2, width // 2, 2, channels)  # [B, H, 2, W, 2, O]
    pads, none = ((0, 1), (1, 0)), (0, 0)

    def placed(array: Array, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
        return jnp.pad(array, (none, rows, columns, none))

    # The gradients of the products: [B, H, W, O], [B, H, W + 1, 2 O], [B, H + 1, W, 2 O], [B, H + 1, W + 1, 4 O].
    level = phases.sum((2, 4))
    columns = jnp.concatenate([placed(phases[:, :, :, :, b].sum(2), none, pads[b]) for b in range(2)], axis=-1)
    rows = jnp.concatenate([placed(phases[:, :, a].sum(3), pads[a], none) for a in range(2)], axis=-1)
    corners = [placed(phases[:, :, a, :, b], pads[a], pads[b]) for a in range(2) for b in range(2)]
    both = jnp.concatenate(corners, axis=-1)
    # The gradients of pixels and differences: the same sizes with I channels.
    level, columns, rows, both = (dense(m, a) for m, a in zip(matrices, (level, columns, rows, both), strict=True))
    # The transposes of the differences: of both into columns, then of rows and columns, [B, H, W, I].
    columns += both[:, 1:] - both[:, :-1]
    return level + (rows[:, 1:] - rows[:, :-1]) + (columns[:, :, 1:] - columns[:, :, :-1])


def _interleave(phases: Sequence[Sequence[Array]]) -> Array:
    """Return `[B, 2H, 2W, C]` with phases[a][b] `[B, H, W, C]` at rows 2i + a and columns 2j + b."""
    rows = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    batch, height, _, width, _, channels = rows.shape
    return rows.reshape(batch, 2 * height, 2 * width, channels)
