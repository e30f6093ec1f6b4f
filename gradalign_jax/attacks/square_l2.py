"""Square Attack in L2 (Andriushchenko et al. 2020, algorithm 3): random search that moves a budget between windows.

The change of an image has norm ε, except for the clamp. A query takes the energy of two random windows of side s, and
the energy that the clamp left unused, and puts it into the first window: a pattern η with a random sign per channel,
added to the window's change scaled to norm 1. η (algorithm 4) is a hill and a valley, side by side or one above the
other, each the sum of centered squares with weights 1, 1/4, 1/9, ...; the start is a mosaic of them, five to a side.

Each image draws its windows from its own key. The authors drew one pair of windows for a whole batch.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax.attacks.ball import BALLS, per_image
from gradalign_jax.attacks.square import Parts, attack_of, check_arguments, parts_of, picture_shape, side_length
from gradalign_jax.types import IMAGE_RANGE, Array, BlackBoxAttack

_TILES = 5  # of the first mosaic, per side
_LEAST_SIDE = 3
_SMALL = 1e-12  # keeps a window without change from dividing by 0


def _hill(height: Array, width: Array, size: int) -> Array:
    """Return a hill of this height and width in the corner of a square `[size, size]`, of norm 1.

    It is the sum over m ≥ 0 of the square around the center with radius m, times 1 / (m + 1)²; a pixel at distance D
    lies in those with m ≥ D.
    """
    sums = jnp.asarray(np.concatenate([[0], np.cumsum(1 / np.arange(1.0, size + 3) ** 2)]), jnp.float32)
    row, column = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
    distance = jnp.maximum(jnp.abs(row - height // 2), jnp.abs(column - width // 2))
    squares = jnp.maximum(height, width) // 2 + 1
    hill = jnp.maximum(sums[squares] - sums[distance], 0) * ((row < height) & (column < width))
    return hill / jnp.maximum(jnp.sqrt(jnp.sum(hill**2)), _SMALL)


def pattern(side: Array, size: int) -> Array:
    """Return η of this side (traced) in the corner of a square `[size, size]`, of norm 1: a hill above a valley."""
    upper = _hill(side // 2, side, size)
    lower = jnp.roll(_hill(side - side // 2, side, size), side // 2, 0)
    both = upper - lower
    return both / jnp.sqrt(jnp.sum(both**2))


def _mosaic(key: Array, change: Array) -> Array:
    """Return the first change of one image, unscaled: tiles of η, each with a random sign per channel."""
    height, width, channels = change.shape
    side = max(height // _TILES, 1)
    first = max((height - side * _TILES) // 2, 0)
    rows, columns = (jnp.arange(size) - first for size in (height, width))
    tiles = (height // side, width // side)
    bits = jax.random.bits(jax.random.fold_in(key, 0), (*tiles, channels + 1), "uint32") & 1
    eta = pattern(jnp.int32(side), side)
    tile = bits[(rows // side).clip(0, tiles[0] - 1)][:, (columns // side).clip(0, tiles[1] - 1)]
    row, column = (place % side for place in (rows, columns))
    value = jnp.where(tile[..., 0] > 0, eta.T[row][:, column], eta[row][:, column])
    inside = [(place >= 0) & (place < count * side) for place, count in zip((rows, columns), tiles, strict=True)]
    return jnp.where((inside[0][:, None] & inside[1][None])[..., None], value[..., None] * (2.0 * tile[..., 1:] - 1), 0)


def _move(key: Array, i: Array, eta: Array, side: Array, epsilon: Array, change: Array) -> Array:
    """Return the change of one image after a query, before it is scaled to norm ε."""
    height, width, channels = change.shape
    bits = jax.random.bits(jax.random.fold_in(key, i + 1), (5 + channels,), "uint32")
    corners = [
        (draw % jnp.maximum(size - side, 1).astype("uint32")).astype(jnp.int32)
        for draw, size in zip(bits[:4], (height, width) * 2, strict=True)
    ]
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    to, away = (
        ((rows >= row) & (rows < row + side) & (columns >= column) & (columns < column + side))[..., None]
        for row, column in (corners[:2], corners[2:])
    )

    def energy(value):
        return jnp.sum(value**2, (0, 1), keepdims=True)

    eta = jnp.where(bits[4] & 1, eta.T, eta)
    last = len(eta) - 1
    hill = eta[(rows[:, 0] - corners[0]).clip(0, last)][:, (columns[0] - corners[1]).clip(0, last)]
    sign = 2.0 * (bits[5:] & 1) - 1
    new = jnp.where(to, hill[..., None] * sign[None, None] + change / (jnp.sqrt(energy(change * to)) + _SMALL), 0)
    left = jnp.maximum(epsilon**2 - jnp.sum(change**2), 0) / channels
    size = jnp.sqrt(left + energy(change * (to | away)))
    return jnp.where(to, new / (jnp.sqrt(energy(new)) + _SMALL) * size, jnp.where(away, 0, change))


def parts(queries: int = 5000, initial_fraction: float = 0.8, bounds: tuple[float, float] = IMAGE_RANGE) -> Parts:
    """Build the parts of the attack, as `square.parts`; arguments and errors are those of `make`."""
    check_arguments(queries, initial_fraction, bounds)

    def iterate(image, epsilon, change):
        return jnp.clip(image + change, *bounds)

    def within(image, epsilon, direction):
        change = per_image(epsilon, image) * BALLS["l2"].steepest_ascent(direction.reshape(image.shape))
        return jnp.clip(image + change, *bounds) - image

    def first(keys, image, epsilon):
        blank = jnp.zeros((len(image), *picture_shape(image.shape[1:])), image.dtype)
        return within(image, epsilon, jax.vmap(_mosaic)(keys, blank))

    def propose(keys, i, image, epsilon, change):
        shape = picture_shape(image.shape[1:])
        side = side_length(i, shape[0] * shape[1], queries, initial_fraction)
        side = jnp.minimum(jnp.maximum(side, _LEAST_SIDE) // 2 * 2 + 1, min(shape[:2]))  # odd
        eta = pattern(side, min(shape[:2]))
        radius = jnp.broadcast_to(jnp.asarray(epsilon, image.dtype), (len(image),))
        change = change.reshape(len(image), *shape)
        return within(image, epsilon, jax.vmap(_move, (0, None, None, None, 0, 0))(keys, i, eta, side, radius, change))

    return parts_of(first, propose, iterate)


def make(
    queries: int = 5000, initial_fraction: float = 0.8, bounds: tuple[float, float] = IMAGE_RANGE
) -> BlackBoxAttack:
    """Build `attack(logits_fn, key, image, label, epsilon) -> image`, as `square.make`, within ε in L2.

    Args:
      queries: forward passes per image, including the start.
      initial_fraction: share of the pixels in the first windows; no window has a side below 3.
      bounds: smallest and largest value of an attacked image.

    Raises:
      ValueError: as `square.make`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logits_fn = lambda x: jnp.stack([x[:, 0, 0, 0] + 0.3, -x[:, 0, 0, 0]], -1)
      >>> image = make(queries=500)(logits_fn, jax.random.key(0), jnp.zeros((1, 6, 6, 1)), jnp.array([0]), 0.8)
      >>> bool(logits_fn(image).argmax() == 1), round(float(jnp.linalg.norm(image)), 3)
      (True, 0.8)
    """
    return attack_of(parts(queries, initial_fraction, bounds), queries)
