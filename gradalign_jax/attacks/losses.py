"""Losses that untargeted attacks raise, one value per image, and the margin that decides who is misclassified."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradalign_jax.types import Array, predicted


def cross_entropy(logits: Array, label: Array) -> Array:
    """Return the cross-entropy `[B]` of logits `[B, K]` with integer labels `[B]`."""
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]


def margin(logits: Array, label: Array) -> Array:
    """Return max_{j≠y} logit_j - logit_y `[B]`, positive where another class wins.

    With two classes it is linear in the score, so its gradient never vanishes.
    """
    is_label = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    other = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return other - jnp.sum(jnp.where(is_label, logits, 0), axis=-1)


LOSSES: dict[str, Callable[[Array, Array], Array]] = {"cross_entropy": cross_entropy, "margin": margin}


def deciding_margin(logits: Array, label: Array) -> Array:
    """Return logit_y - max_{j≠y} logit_j `[B]`, positive exactly where `types.predicted` gives the label.

    A label that wins a tie has the smallest positive number instead of 0. NaN is not positive.
    """
    value = -margin(logits, label)
    right = predicted(logits) == label
    return jnp.where(right & ~(value > 0), jnp.finfo(value.dtype).tiny, value)
