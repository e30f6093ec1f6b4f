"""The forms of a convolution's input gradient, each a function of (window, output gradients, kernel).

All compute the gradient of the images `[B, H, W, I]`, in the type of the output gradients g `[B, h, w, O]`, with
factors in the type of the kernel `[kh, kw, I, O]`. `convolution.py` chooses among them on a CPU; a GPU or TPU has
`accelerator`.
"""

import jax.numpy as jnp
from jax import lax

from gradalign_jax.ops.forms import dense_matrix, materialized
from gradalign_jax.ops.matmul import product
from gradalign_jax.ops.window import LAYOUT, Form, Window, dilated_pads, gradient_window, pad
from gradalign_jax.ops.winograd import F43, band, over_bands, rows_from, tiled, tiles_of, weighted
from gradalign_jax.types import Array


def plain(window: Window, g: Array, kernel: Array) -> Array:
    """Return XLA's own convolution of the output gradients, dilated by the stride.

    The flipped kernel is also transposed, which is faster on a CPU than to contract its outputs in place.
    """
    return lax.conv_general_dilated(
        *(g.astype(kernel.dtype), _flipped(kernel), (1, 1), dilated_pads(window)),
        lhs_dilation=(window.stride, window.stride),
        dimension_numbers=LAYOUT,
        preferred_element_type=g.dtype,
    )


def accelerator(window: Window, g: Array, kernel: Array, layout: str = "HWOI") -> Array:
    """Return the input gradient for a GPU or TPU, as XLA recognizes it: the zeros of the dilation are not multiplied.

    XLA recognizes it where the kernel's flip stands next to the convolution; without the barrier it moves the flip.

    Args:
      window: the convolution.
      g: output gradients `[B, h, w, O]`.
      kernel: the convolution's kernel.
      layout: the kernel's axes, from the gradient's side: "I" is the axis that is contracted with g.
    """
    flipped = lax.rev(materialized(kernel), (layout.index("H"), layout.index("W")))
    result = lax.conv_general_dilated(
        *(g.astype(kernel.dtype), flipped, (1, 1), dilated_pads(window)),
        lhs_dilation=(window.stride, window.stride),
        dimension_numbers=("NHWC", layout, "NHWC"),
    )
    return result.astype(g.dtype)


def dense(window: Window, g: Array, kernel: Array) -> Array:
    """Return the input gradient of `forms.dense`, with its matrix: that of the flipped kernel takes longer to build.

    In bfloat16 the transpose is materialized; XLA would multiply by it in float32 on some CPUs.
    """
    matrix = dense_matrix(window, kernel)
    transposed = materialized(matrix.T) if matrix.dtype == jnp.bfloat16 else matrix.T
    return product(g.reshape(len(g), -1), transposed).reshape(len(g), *window.image, kernel.shape[2])


def winograd(window: Window, g: Array, kernel: Array) -> Array:
    """Return the input gradient of a convolution of stride 1 and 3 rows, as `forms.winograd` of the flipped kernel.

    The products contract the kernel's outputs in place: a transpose fused into the sums of `forms.winograd` costs more
    than the products where channels are many and pixels few.
    """
    back, taps = gradient_window(window), window.kernel[1]
    rows = tiled(back, pad(g, ((0, 0), back.pads[1])))  # [B, 4 tiles + 2, W + kw - 1, O]

    def add(total: Array, from_input: Array, from_kernel: Array, to_output: Array) -> Array:
        row_kernel = weighted(from_kernel, kernel[::-1])  # [kw, I, O], flipped along the rows only
        seen = band(rows, from_input)  # [B, tiles, W + kw - 1, O]
        views = [seen[:, :, tap : tap + window.image[1]] for tap in range(taps)]  # kw x [B, tiles, W, O]
        products = [product(view, row_kernel[taps - 1 - tap].T) for tap, view in enumerate(views)]
        gradient: Array = sum(products)  # type: ignore[assignment]  # sum starts at 0
        return total + to_output[None, None, :, None, None] * gradient[:, :, None]

    zeros = jnp.zeros((len(g), tiles_of(back), F43.tile, window.image[1], kernel.shape[2]), g.dtype)
    return rows_from(over_bands(add, zeros), window.image[0])


def by_phase(window: Window, g: Array, kernel: Array, stride_one: Form) -> Array:
    """Return the input gradient of a strided convolution: a stride-1 convolution for each phase of the stride.

    An input pixel n = stride·a + phase meets only the taps t ≡ n + low (mod stride), so that the zeros of a dilation
    are not multiplied.
    """
    stride, size = window.stride, [-(-n // window.stride) for n in window.image]
    flipped = _flipped(kernel)
    rows = []
    for row in range(stride):
        # stride x [B, H / stride, W / stride, I] to [B, H / stride, W, I], sizes rounded up
        phases = [_phase(window, g, flipped, (row, column), stride_one) for column in range(stride)]
        rows.append(jnp.stack(phases, axis=3).reshape(len(g), size[0], -1, flipped.shape[3]))
    image = jnp.stack(rows, axis=2).reshape(len(g), -1, *rows[0].shape[2:])
    return image[:, : window.image[0], : window.image[1]]


def _phase(window: Window, g: Array, flipped: Array, phase: tuple[int, int], stride_one: Form) -> Array:
    """Return the input gradients at rows and columns ≡ phase (mod stride)."""
    stride = window.stride
    first, size, pads = [], [], []
    for r, n, k, out, (low, _) in zip(phase, window.image, window.kernel, window.output, window.pads, strict=True):
        first.append((r + low) % stride)
        taps = len(range(first[-1], k, stride))
        low = taps - 1 - (r + low - first[-1]) // stride
        size.append(-(-n // stride))
        pads.append((low, size[-1] - out - low + taps - 1))
    # Tap t of the kernel is tap k - 1 - t of the flipped kernel: the slices start at the last tap of the phase.
    first = [(k - 1 - t) % stride if t < k else k for t, k in zip(first, window.kernel, strict=True)]
    part = flipped[first[0] :: stride, first[1] :: stride]
    if not part.size:
        return jnp.zeros((len(g), *size, flipped.shape[3]), g.dtype)
    return stride_one(Window(window.output, (part.shape[0], part.shape[1]), 1, (pads[0], pads[1])), g, part)


def _flipped(kernel: Array) -> Array:
    """Return the kernel flipped along rows and columns, `[kh, kw, I, O]` to `[kh, kw, O, I]`."""
    return kernel[::-1, ::-1].swapaxes(2, 3)
