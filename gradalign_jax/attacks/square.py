"""Square Attack in L∞ (Andriushchenko et al. 2020, algorithm 2): random search over squares that reads only the logits.

An iterate is a corner of the ε-cube: the image plus ε times a sign per pixel, clamped. The state of the search is
therefore a pattern of signs, and no iterate can leave the ball or the range. Each image draws its windows and signs
from its own key. The authors of the paper drew one window for a whole batch and reset PyTorch's seed at every call.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax.attacks import losses
from gradalign_jax.attacks.ball import check_epsilon, per_image
from gradalign_jax.attacks.pgd import image_keys
from gradalign_jax.types import IMAGE_RANGE, Array, BlackBoxAttack, LogitsFn

# The share of pixels in a window halves after each of these queries of 10,000; other budgets scale the schedule.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_MOST_QUERIES = 200_000  # so that i * 10,000 fits an int32
_FIRST_CHUNK = 10  # iterations; each further chunk of `run` is twice as long, up to the longest
_LONGEST_CHUNK = 200  # an image that `search` alone counts as fooled idles until the end of its chunk


class State(NamedTuple):
    """The state of the search for each image.

    pattern: `[B, ...]`, the source of the iterate: its signs in L∞ (int8), its change in L2; 0 for an image that was
      misclassified before any query.
    margin: `[B]`, `losses.deciding_margin` of the iterate: logit_y - max_{j≠y} logit_j, positive unless it is
      misclassified. Logits that are NaN count as misclassified.
    queries: int32 `[B]`, forward passes on attacked images.
    """

    pattern: Array
    margin: Array
    queries: Array


class Parts(NamedTuple):
    """The attack in parts, for drivers that interrupt it.

    start(logits_fn, key, image, label, epsilon) -> State: vertical stripes, the first query.
    search(logits_fn, key, image, label, epsilon, state, first, last) -> State: iterations first .. last - 1 (traced);
      ends early once every image is fooled.
    decide(logits_fn, image, label, epsilon, state) -> State: decides by the logits of `logits_fn` which images are
      fooled, where `search` used lower precision. An image that is misclassified only in lower precision stays in the
      search, with the margin of `logits_fn`.
    attacked(image, epsilon, state) -> images: the iterate where it is misclassified, else the image itself.
    """

    start: Callable[..., State]
    search: Callable[..., State]
    decide: Callable[..., State]
    attacked: Callable[..., Array]


def _margin(logits_fn: LogitsFn, image: Array, label: Array) -> Array:
    return losses.deciding_margin(logits_fn(image), label)


def picture_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return height, width and channels; a vector becomes the squarest picture of its length (500: 20 x 25)."""
    if len(shape) == 1:
        height = max(n for n in range(1, math.isqrt(shape[0]) + 1) if shape[0] % n == 0)
        return height, shape[0] // height, 1
    return shape[0], shape[1], math.prod(shape[2:])


def side_length(i: Array, pixels: int, queries: int, initial_fraction: float) -> Array:
    """Return the side of the window of iteration i, int32: √(p · pixels) rounded, at least 1."""
    halvings = jnp.sum(i * 10_000 // queries > jnp.asarray(_HALVINGS))
    side = jnp.round(jnp.sqrt(initial_fraction * pixels * 0.5**halvings))
    return jnp.maximum(side, 1).astype(jnp.int32)


def _stripes(key: Array, sign: Array) -> Array:
    """Return one image's start: a random sign per column and channel."""
    return jnp.broadcast_to(jax.random.rademacher(jax.random.fold_in(key, 0), sign.shape[1:], sign.dtype), sign.shape)


def _repaint(key: Array, i: Array, side: Array, sign: Array) -> Array:
    """Return one image's signs with a random window set to a random sign per channel.

    As in the published code, windows smaller than the image never reach its last row and column.
    """
    height, width, channels = sign.shape
    bits = jax.random.bits(jax.random.fold_in(key, i + 1), (2 + channels,), "uint32")
    within = [
        (place >= corner) & (place < corner + side)
        for place, corner in (
            (jnp.arange(size), (draw % jnp.maximum(size - side, 1).astype("uint32")).astype(jnp.int32))
            for size, draw in ((height, bits[0]), (width, bits[1]))
        )
    ]
    window = within[0][:, None, None] & within[1][None, :, None]
    return jnp.where(window, (2 * (bits[2:] & 1).astype(sign.dtype) - 1), sign)


def check_arguments(queries: int, initial_fraction: float, bounds: tuple[float, float]) -> None:
    """Check the arguments of `make`.

    Raises:
      ValueError: as `make` does.
    """
    if not 1 <= queries <= _MOST_QUERIES or not 0 < initial_fraction <= 1 or not bounds[0] < bounds[1]:
        raise ValueError(
            f"queries must lie in 1 to {_MOST_QUERIES}, initial_fraction in (0, 1], and bounds must ascend, got "
            f"queries={queries}, initial_fraction={initial_fraction}, bounds={tuple(bounds)}"
        )


def parts_of(first: Callable[..., Array], propose: Callable[..., Array], iterate: Callable[..., Array]) -> Parts:
    """Build the parts of a random search over patterns `[B, ...]`.

    Args:
      first: (keys, image, epsilon) -> the pattern of the first query.
      propose: (keys, i, image, epsilon, pattern) -> the pattern that iteration i tries.
      iterate: (image, epsilon, pattern) -> the attacked image.
    """

    def start(logits_fn: LogitsFn, key: Array, image: Array, label: Array, epsilon) -> State:
        clean = _margin(logits_fn, image, label)
        alive = clean > 0
        pattern = first(image_keys(key, len(image)), image, epsilon)
        pattern = pattern * per_image(alive, pattern)
        margin = _margin(logits_fn, iterate(image, epsilon, pattern), label)
        return State(pattern, jnp.where(alive, margin, clean), alive.astype(jnp.int32))

    def search(logits_fn: LogitsFn, key: Array, image: Array, label: Array, epsilon, state: State, begin, end) -> State:
        keys = image_keys(key, len(image))

        def unfinished(carry):
            i, state = carry
            return (i < end) & jnp.any(state.margin > 0)

        def query(carry):
            i, state = carry
            pattern = propose(keys, i, image, epsilon, state.pattern)
            margin = _margin(logits_fn, iterate(image, epsilon, pattern), label)
            alive = state.margin > 0
            better = alive & ~(margin >= state.margin)  # a NaN counts as an improvement: it misclassifies
            return i + 1, State(
                jnp.where(per_image(better, image) > 0, pattern, state.pattern),
                jnp.where(better, margin, state.margin),
                state.queries + alive,
            )

        return jax.lax.while_loop(unfinished, query, (jnp.asarray(begin, jnp.int32), state))[1]

    def decide(logits_fn: LogitsFn, image: Array, label: Array, epsilon, state: State) -> State:
        margin = _margin(logits_fn, iterate(image, epsilon, state.pattern), label)
        agreed = (state.margin > 0) & (margin > 0)
        return state._replace(margin=jnp.where(agreed, state.margin, margin))

    def attacked(image: Array, epsilon, state: State) -> Array:
        fooled = ~(state.margin > 0) & (state.queries > 0)
        return jnp.where(per_image(fooled, image) > 0, iterate(image, epsilon, state.pattern), image)

    return Parts(start, search, decide, attacked)


def attack_of(parts: Parts, queries: int) -> BlackBoxAttack:
    """Build the attack that runs the parts to the end of the budget."""

    def attack(logits_fn: LogitsFn, key: Array, image: Array, label: Array, epsilon) -> Array:
        check_epsilon(epsilon)
        image, keys = jax.lax.stop_gradient(image), image_keys(key, len(image))
        state = parts.start(logits_fn, keys, image, label, epsilon)
        state = parts.search(logits_fn, keys, image, label, epsilon, state, 0, queries - 1)
        return jax.lax.stop_gradient(parts.attacked(image, epsilon, state))

    return attack


def parts(queries: int = 5000, initial_fraction: float = 0.8, bounds: tuple[float, float] = IMAGE_RANGE) -> Parts:
    """Build the parts of the attack; arguments and errors are those of `make`."""
    check_arguments(queries, initial_fraction, bounds)

    def iterate(image, epsilon, sign):
        return jnp.clip(image + per_image(epsilon, image) * sign, *bounds)

    def first(keys, image, epsilon):
        blank = jnp.zeros((len(image), *picture_shape(image.shape[1:])), jnp.int8)
        return jax.vmap(_stripes)(keys, blank).reshape(image.shape)

    def propose(keys, i, image, epsilon, sign):
        shape = picture_shape(image.shape[1:])
        side = side_length(i, shape[0] * shape[1], queries, initial_fraction)
        sign = sign.reshape(len(image), *shape)
        return jax.vmap(_repaint, (0, None, None, 0))(keys, i, side, sign).reshape(image.shape)

    return parts_of(first, propose, iterate)


def make(
    queries: int = 5000, initial_fraction: float = 0.8, bounds: tuple[float, float] = IMAGE_RANGE
) -> BlackBoxAttack:
    """Build `attack(logits_fn, key, image, label, epsilon) -> image`.

    The search starts from random vertical stripes of ±ε. Each query fills a random square window with ±ε per channel
    and keeps it where it lowers the margin logit_y - max_{j≠y} logit_j. The search of an image ends when it is
    misclassified; of tied logits the first counts (`types.predicted`). Windows shrink on the published schedule, scaled
    to the budget. Images that no query fools, and images that are misclassified already, are returned unchanged. ε is
    traced: a scalar or one per image, in the units of the images. `key` is one key, or one per image `[B]`; in the
    latter case an image's windows do not depend on the rest of its batch. Vectors `[B, n]` are laid out as pictures,
    the 500 coordinates of Spheres as 20 x 25.

    Args:
      queries: forward passes per image, including the stripes (the authors' code spends one more).
      initial_fraction: share of the pixels in the first windows.
      bounds: smallest and largest value of an attacked image.

    Raises:
      ValueError: if `queries` is below 1 or above 200,000, `initial_fraction` is outside (0, 1] or `bounds` do not
        ascend.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)) + 1, -x.sum((1, 2, 3))], -1)
      >>> image = make(queries=200)(logits_fn, jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.array([0]), 0.25)
      >>> bool(logits_fn(image).argmax() == 1), float(abs(image).max())
      (True, 0.25)
    """
    return attack_of(parts(queries, initial_fraction, bounds), queries)


def run(
    start: Callable[[np.ndarray], State],
    search: Callable[[np.ndarray, State, int, int], State],
    size: int,
    queries: int = 5000,
    tick: Callable[[int, int], None] = lambda queries, left: None,
) -> State:
    """Attack a large set from the host, dropping the rows that are fooled after each chunk of queries.

    `start` and `search` may work in blocks of one shape, so that nothing recompiles and the arithmetic of a row does
    not depend on the number of rows that are left.

    Args:
      start: rows int `[n]` -> State of those rows.
      search: (rows, their State, first, last) -> State.
      size: number of rows, for example of (image, ε) pairs.
      queries: as in `make`.
      tick: called before each chunk with the queries spent and the number of rows left.

    Returns:
      The State of all rows, on the host.
    """
    state = State._make(np.array(leaf) for leaf in start(np.arange(size)))
    ends = [0]
    while ends[-1] < queries - 1:
        ends.append(min(ends[-1] + min(ends[-1] + _FIRST_CHUNK, _LONGEST_CHUNK), queries - 1))
    for first, last in pairwise(ends):
        rows = np.flatnonzero(state.margin > 0)
        tick(first + 1, len(rows))
        if not rows.size:
            break
        part = search(rows, State(*(leaf[rows] for leaf in state)), first, last)
        for leaf, new in zip(state, part, strict=True):
            leaf[rows] = new
    return state
