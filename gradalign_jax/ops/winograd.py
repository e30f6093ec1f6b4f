"""Winograd's minimal filtering: the tables F(2, 3) and F(4, 3), and the use of F(4, 3) along the rows of an image.

F(m, 3) computes m outputs y of a filter of 3 taps g from m + 2 inputs d, with m + 2 products instead of 3 m:

    y = to_output @ ((from_kernel @ g) * (from_input @ d))

Along the rows only, the products become convolutions of rows: one for each of the m + 2 *bands*, the combinations of
the input rows of every tile of m output rows. Reference: Lavin & Gray, arXiv:1509.09308.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from gradalign_jax.ops.window import Window, pad
from gradalign_jax.types import Array

Matrix = tuple[tuple[float, ...], ...]


class Table(NamedTuple):
    """The matrices of F(tile, 3)."""

    from_input: Matrix  # [tile + 2, tile + 2]
    from_kernel: Matrix  # [tile + 2, 3]
    to_output: Matrix  # [tile, tile + 2]

    @property
    def tile(self) -> int:
        """Number of outputs."""
        return len(self.to_output)


F23 = Table(
    from_input=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1)),
    from_kernel=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    to_output=((1, 1, 1, 0), (0, 1, -1, 1)),
)

# In float32, along the rows only, its error is 3e-6 of the largest value; that of a plain sum is 1e-6.
F43 = Table(
    from_input=(
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    from_kernel=(
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    to_output=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)


def combine(weights: Sequence[float], arrays: Sequence[Array] | Array) -> Array:
    """Return the weighted sum of arrays, without the terms of weight zero."""
    return sum(w * a for w, a in zip(weights, arrays, strict=True) if w)


def tiled(window: Window, x: Array) -> Array:
    """Return images `[B, H, W, I]` with the rows that their tiles read, `[B, 4 tiles + 2, W, I]`.

    A tile is 4 output rows; tile t reads the rows 4t ... 4t + 5.
    """
    low, height = window.pads[0][0], F43.tile * tiles_of(window) + 2
    # Without the barrier XLA would slice the rows of all tiles before the loop over bands, six copies.
    return lax.optimization_barrier(pad(x, ((low, height - low - x.shape[1]), (0, 0))))


def tiles_of(window: Window) -> int:
    """Return the number of tiles, of which the last may reach beyond the output."""
    return -(-window.output[0] // F43.tile)


def band(rows: Array, weights: Array) -> Array:
    """Return one of the 6 bands of `tiled` images, `[B, tiles, W, I]`: the weighted sum of the rows of every tile."""
    last = rows.shape[1] - 2 - F43.tile
    return weighted(weights, [rows[:, row : row + last + 1 : F43.tile] for row in range(F43.tile + 2)])


def over_bands(add: Callable[[Array, Array, Array, Array], Array], total: Array) -> Array:
    """Return the total after `add(total, from_input [6], from_kernel [3], to_output [4])` for each of the 6 bands.

    A loop, because a program's compile time grows with the number of its kernels.
    """
    tables = F43.from_input, F43.from_kernel, tuple(zip(*F43.to_output, strict=True))
    columns = tuple(jnp.asarray(table, total.dtype) for table in tables)
    return lax.scan(lambda total, weights: (add(total, *weights), None), total, columns)[0]


def weighted(weights: Array, arrays: Sequence[Array] | Array) -> Array:
    """Return the sum of arrays, with weights `[n]` that are themselves an array."""
    return sum(weights[i].astype(a.dtype) * a for i, a in enumerate(arrays))  # type: ignore[return-value]  # starts at 0


def band_window(window: Window) -> Window:
    """Return the window of the convolution along the columns that remains for each band."""
    return Window((tiles_of(window), window.image[1]), (1, window.kernel[1]), 1, ((0, 0), window.pads[1]))


def rows_from(total: Array, height: int) -> Array:
    """Return the rows of all tiles one after the other, `[B, tiles, 4, W, O]` to `[B, height, W, O]`."""
    return total.reshape(len(total), -1, *total.shape[3:])[:, :height]


def rows_apart(g: Array) -> Array:
    """Return the rows of each tile, `[B, H, W, O]` to `[B, tiles, 4, W, O]`; missing rows are zeros."""
    missing = -g.shape[1] % F43.tile
    g = jnp.pad(g, ((0, 0), (0, missing), (0, 0), (0, 0)))
    return g.reshape(len(g), -1, F43.tile, *g.shape[2:])
