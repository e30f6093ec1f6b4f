"""Carlini and Wagner's L2 attack (2017), as the paper's Figure 7 uses it: the smallest change that fools, by descent.

Settings are those of the authors' code. Every image has its own constant, its own search and its own early stop, where
the authors' library stopped a whole batch on its summed loss: a result does not depend on who shares the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradalign_jax.attacks import losses
from gradalign_jax.attacks.ball import per_image
from gradalign_jax.types import IMAGE_RANGE, Array, LogitsFn

_INSIDE = 0.999999  # keeps arctanh finite at the ends of the range, and says when a loss no longer falls
_CHECKS = 10  # early stops are considered so many times a descent


class Found(NamedTuple):
    """What the attack found.

    image: `[B, ...]`, misclassified, as near as it could; the image itself where none was found.
    distance: `[B]`, the L2 norm of the change; +inf flags an image that no attempt fooled.
    """

    image: Array
    distance: Array


class _Search(NamedTuple):
    """The binary search for the loss's constant, `[B]` each; the best so far is among the results."""

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
    """Builds `attack(logits_fn, image, label) -> Found`, untargeted.

    Adam descends |x' - x|² + c · max(0, logit_y - max_{j≠y} logit_j + confidence) in w, with x' = tanh(w) scaled to
    `bounds`; a binary search over c (tenfold until it first succeeds) starts anew `search_steps` times. A descent ends
    early where a tenth of its iterations did not lower the loss.

    Args:
      search_steps: values of c tried.
      iterations: of Adam for each c, at most.
      constant: the first c.
      learning_rate: of Adam.
      confidence: by how much another class must win.
      bounds: smallest and largest value of an attacked image. Pixels outside are clamped first; the distance counts it.

    Raises:
      ValueError: on counts below 1, a constant or rate that is not positive, or bounds that do not ascend.
    """
    if min(search_steps, iterations) < 1 or min(constant, learning_rate) <= 0 or not bounds[0] < bounds[1]:
        raise ValueError(
            f"search_steps and iterations must be >= 1, constant and learning_rate > 0 and bounds ascend, got "
            f"{search_steps}, {iterations}, {constant}, {learning_rate}, {tuple(bounds)}"
        )
    centre, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2
    adam = optax.adam(learning_rate)
    check_every = max(iterations // _CHECKS, 1)

    def squared(vector):
        return jnp.sum(vector.reshape(len(vector), -1) ** 2, axis=-1)

    def attack(logits_fn: LogitsFn, image: Array, label: Array) -> Found:
        image = jax.lax.stop_gradient(image)
        w = jnp.arctanh(_INSIDE * jnp.clip((image - centre) / half, -1, 1))
        start = centre + half * jnp.tanh(w)

        def objective(delta, constant):
            trial = centre + half * jnp.tanh(w + delta)
            margin = confidence - losses.margin(logits_fn(trial), label)
            moved = squared(trial - start)
            loss = moved + constant * jnp.maximum(margin, 0)
            return jnp.sum(loss), (loss, margin, trial)

        def descend(search: _Search) -> tuple[Found, Array]:
            """One descent: the best found in all so far, and whether this constant fooled."""

            def unfinished(carry):
                i, running = carry[:2]
                return (i < iterations) & jnp.any(running)

            def iterate(carry):
                i, running, delta, moments, previous, found, fooled = carry
                gradient, (loss, margin, trial) = jax.grad(objective, has_aux=True)(delta, search.constant)
                updates, moments = adam.update(gradient, moments)
                checked = i % check_every == 0
                running &= ~(checked & (loss > previous * _INSIDE))
                previous = jnp.where(checked, loss, previous)
                success = running & (margin < 0)
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
