"""Losses that attacks maximize, one value per image, and the margin that decides which images are misclassified."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradalign_jax.types import Array, predicted

_TINY = 1e-12  # keeps the ratio finite where the sorted logits are equal


def _pick(logits: Array, label: Array) -> Array:
    return jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]


def cross_entropy(logits: Array, label: Array) -> Array:
    """Return the cross-entropy `[B]` of logits `[B, K]` with integer labels `[B]`."""
    return jax.nn.logsumexp(logits, axis=-1) - _pick(logits, label)


def margin(logits: Array, label: Array) -> Array:
    """Return max_{j≠y} logit_j - logit_y `[B]`, positive where another class wins.

    With two classes it is linear in the score, so its gradient never vanishes.
    """
    is_label = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    other = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return other - jnp.sum(jnp.where(is_label, logits, 0), axis=-1)


def dlr(logits: Array, label: Array) -> Array:
    """Return the difference of logits ratio `[B]` (Croce & Hein 2020, Eq. 6): margin / (z_(1) - z_(3)), z_(i) sorted.

    Unlike cross-entropy, it does not depend on the scale of the logits: its gradient does not vanish for large logits.

    Raises:
      ValueError: if there are fewer than three classes.
    """
    if logits.shape[-1] < 3:
        raise ValueError(f"dlr needs 3 classes, got {logits.shape[-1]}: use cross_entropy or margin")
    largest = jax.lax.top_k(logits, 3)[0]
    return margin(logits, label) / (largest[:, 0] - largest[:, 2] + _TINY)


def pma(logits: Array, label: Array) -> Array:
    """Return the probability margin max_{j≠y} p_j - p_y `[B]` (Xie et al. 2024, arXiv 2411.15210)."""
    return margin(jax.nn.softmax(logits), label)


def targeted_margin(logits: Array, label: Array, target: Array) -> Array:
    """Return logit_t - logit_y `[B]`."""
    return _pick(logits, target) - _pick(logits, label)


def targeted_dlr(logits: Array, label: Array, target: Array) -> Array:
    """Return (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2) `[B]`, z_(i) sorted (Croce & Hein 2020, Eq. 7).

    Raises:
      ValueError: if there are fewer than four classes.
    """
    if logits.shape[-1] < 4:
        raise ValueError(f"targeted dlr needs 4 classes, got {logits.shape[-1]}: use cross_entropy or margin")
    largest = jax.lax.top_k(logits, 4)[0]
    return targeted_margin(logits, label, target) / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + _TINY)


def targeted_pma(logits: Array, label: Array, target: Array) -> Array:
    """Return p_t - p_y `[B]`."""
    return targeted_margin(jax.nn.softmax(logits), label, target)


LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "pma": pma,
}
# Maximized toward a target: loss(logits, label, target) -> [B].
TARGETED: dict[str, Callable[[Array, Array, Array], Array]] = {
    "cross_entropy": lambda logits, label, target: -cross_entropy(logits, target),
    "margin": targeted_margin,
    "dlr": targeted_dlr,
    "pma": targeted_pma,
}


def deciding_margin(logits: Array, label: Array) -> Array:
    """Return logit_y - max_{j≠y} logit_j `[B]`, positive exactly where `types.predicted` gives the label.

    A label that wins a tie has the smallest positive number instead of 0. NaN is not positive.
    """
    value = -margin(logits, label)
    right = predicted(logits) == label
    return jnp.where(right & ~(value > 0), jnp.finfo(value.dtype).tiny, value)
