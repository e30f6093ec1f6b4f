"""Carlini and Wagner's L2 attack (2017): the smallest change that fools a classifier, by gradient descent (Figure 7).

Defaults are those of the authors' code. Every image has its own constant, search and early stop, so its result does not
depend on the rest of its batch; the authors' library stops a whole batch on the sum of its losses.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradalign_jax.attacks import losses
from gradalign_jax.attacks.ball import per_image
from gradalign_jax.types import IMAGE_RANGE, Array, LogitsFn, predicted

_INSIDE = 0.999999  # keeps arctanh finite at the ends of the range; also the factor by which a loss must fall
_CHECKS = 10  # checks for an early stop in each descent


class Found(NamedTuple):
    """The nearest misclassified images that the attack found.

    image: `[B, ...]`, the misclassified image, or the original one where the attack failed.
    distance: `[B]`, the L2 norm of the change, or +inf where the attack failed.
    """

    image: Array
    distance: Array


class _Search(NamedTuple):
    """The binary search for the constant of the loss, `[B]` each, and the best images so far."""

    constant: Array
    low: Array
    high: Array
    found: Found


def make(
    search_steps: int = 9,
    iterations: int = 10_000,
    constant: float = 1e-3,
    learning_rate: float = 0.02,
    confidence: float = 0.0,
    bounds: tuple[float, float] = IMAGE_RANGE,
) -> Callable[[LogitsFn, Array, Array], Found]:
    """Build the untargeted `attack(logits_fn, image, label) -> Found`.

    Adam minimizes |x' - x|² + c · max(0, logit_y - max_{j≠y} logit_j + confidence) over w, with x' = tanh(w) scaled to
    `bounds`, once for each value of c. A search over c takes ten times the last value until one succeeds, and bisects
    from there. A descent ends early if the loss has not fallen over a tenth of its iterations.

    Args:
      search_steps: number of values of c.
      iterations: maximum number of Adam steps for each c.
      constant: the first value of c.
      learning_rate: Adam's, in units of w. It must be small beside the distance sought: the authors use 0.02, and 0.002
        for Spheres, where 0.02 overestimates the distance by a fifth or more.
      confidence: the margin by which another class must win.
      bounds: smallest and largest value of an attacked image. Values outside are clamped first, which the distance
        includes.

    Raises:
      ValueError: if a count is below 1, `constant` or `learning_rate` is not positive, or `bounds` do not ascend.
    """
    if min(search_steps, iterations) < 1 or min(constant, learning_rate) <= 0 or not bounds[0] < bounds[1]:
        raise ValueError(
            f"search_steps and iterations must be >= 1, constant and learning_rate > 0, and bounds must ascend, got "
            f"{search_steps}, {iterations}, {constant}, {learning_rate}, {tuple(bounds)}"
        )
    center, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2
    adam = optax.adam(learning_rate)
    check_every = max(iterations // _CHECKS, 1)

    def squared(vector):
        return jnp.sum(vector.reshape(len(vector), -1) ** 2, axis=-1)

    def attack(logits_fn: LogitsFn, image: Array, label: Array) -> Found:
        image = jax.lax.stop_gradient(image)
        w = jnp.arctanh(_INSIDE * jnp.clip((image - center) / half, -1, 1))
        start = center + half * jnp.tanh(w)

        def objective(delta, constant):
            trial = center + half * jnp.tanh(w + delta)
            logits = logits_fn(trial)
            margin = confidence - losses.margin(logits, label)
            # A tie counts as misclassified unless the label wins it, as in all attacks.
            tied = (margin == 0) & (predicted(logits) != label)
            moved = squared(trial - start)
            loss = moved + constant * jnp.maximum(margin, 0)
            return jnp.sum(loss), (loss, (margin < 0) | tied, trial)

        def descend(search: _Search) -> tuple[Found, Array]:
            """Return the best images so far, and which images the current constant fooled."""

            def unfinished(carry):
                i, running = carry[:2]
                return (i < iterations) & jnp.any(running)

            def iterate(carry):
                i, running, delta, moments, previous, found, fooled = carry
                gradient, (loss, wrong, trial) = jax.grad(objective, has_aux=True)(delta, search.constant)
                updates, moments = adam.update(gradient, moments)
                checked = i % check_every == 0
                running &= ~(checked & (loss > previous * _INSIDE))
                previous = jnp.where(checked, loss, previous)
                success = running & wrong
                distance = jnp.sqrt(squared(trial - image))
                nearer = success & (distance < found.distance)
                found = Found(
                    jnp.where(per_image(nearer, image) > 0, trial, found.image),
                    jnp.where(nearer, distance, found.distance),
                )
                return i + 1, running, delta + updates, moments, previous, found, fooled | success

            delta = jnp.zeros_like(image)
            everyone = jnp.ones(len(image), bool)
            carry = (0, everyone, delta, adam.init(delta), jnp.full(len(image), jnp.inf), search.found, ~everyone)
            return jax.lax.while_loop(unfinished, iterate, carry)[-2:]

        def attempt(_, search: _Search) -> _Search:
            found, fooled = descend(search)
            high = jnp.where(fooled, jnp.minimum(search.high, search.constant), search.high)
            low = jnp.where(fooled, search.low, jnp.maximum(search.low, search.constant))
            tenfold = jnp.isinf(high)
            return _Search(jnp.where(tenfold, 10 * search.constant, (low + high) / 2), low, high, found)

        everyone = jnp.ones(len(image), image.dtype)
        nothing = Found(image, jnp.inf * everyone)
        search = _Search(constant * everyone, 0 * everyone, jnp.inf * everyone, nothing)
        return jax.lax.stop_gradient(jax.lax.fori_loop(0, search_steps, attempt, search).found)

    return attack
