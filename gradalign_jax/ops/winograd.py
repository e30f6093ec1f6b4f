"""Winograd's minimal filtering: the tables F(2, 3) and F(4, 3), and the use of F(4, 3) along the rows of an image.

F(m, 3) computes m outputs y of a filter of 3 taps g from m + 2 inputs d, with m + 2 products instead of 3 m:

    y = to_output @ ((from_kernel @ g) * (from_input @ d))

Along the rows only, the products become convolutions of rows: one for each of the m + 2 *bands*, the combinations of
the input rows of every tile of m output rows. Reference: Lavin & Gray, arXiv:1509.09308.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

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


def bands(window: Window, x: Array) -> list[Array]:
    """Return the 6 bands of images for F(4, 3), `[B, H, W, I]` to `[B, tiles, W, I]` each; a tile is 4 output rows."""
    tile, tiles = F43.tile, -(-window.output[0] // F43.tile)
    low = window.pads[0][0]
    # [B, 4 tiles + 2, W, I]: tile t reads the rows 4t ... 4t + 5.
    x = pad(x, ((low, tiles * tile + 2 - low - x.shape[1]), (0, 0)))
    # 6 x [B, tiles, W, I]: row r of every tile.
    rows = [x[:, row : row + (tiles - 1) * tile + 1 : tile] for row in range(tile + 2)]
    return [combine(weights, rows) for weights in F43.from_input]


def band_window(window: Window, band: Array) -> Window:
    """Return the window of the convolution along the columns that remains for each band."""
    return Window((band.shape[1], band.shape[2]), (1, window.kernel[1]), 1, ((0, 0), window.pads[1]))


def rows_from(products: Sequence[Array], height: int) -> Array:
    """Return the output rows from the products of the 6 bands: `[B, tiles, W, O]` each to `[B, height, W, O]`."""
    # [B, tiles, 4, W, O]
    rows = jnp.stack([combine(weights, products) for weights in F43.to_output], axis=2)
    return rows.reshape(len(rows), -1, *rows.shape[3:])[:, :height]


def rows_apart(g: Array) -> list[Array]:
    """Return row 0 ... 3 of every tile, `[B, H, W, O]` to `[B, tiles, W, O]` each; missing rows are zeros."""
    missing = -g.shape[1] % F43.tile
    g = jnp.pad(g, ((0, 0), (0, missing), (0, 0), (0, 0)))
    return [g[:, row :: F43.tile] for row in range(F43.tile)]
