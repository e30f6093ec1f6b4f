"""Target classes of an attack, and an attack vmapped over them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradalign_jax.attacks.pgd import image_keys
from gradalign_jax.types import Array


def likeliest(logits: Array, label: Array, count: int) -> Array:
    """Return the `count` wrong classes with the largest logits, int `[B, T]`, largest first; T is at most K - 1."""
    wrong = jnp.where(jax.nn.one_hot(label, logits.shape[-1], dtype=bool), -jnp.inf, logits)
    return jax.lax.top_k(wrong, min(count, logits.shape[-1] - 1))[1]


def keys(key: Array, target: Array) -> Array:
    """Return one key per image and target `[B, T]`: the image's own key, folded with the class.

    A caller that attacks one target at a time draws the same numbers as one that attacks all at once.
    """
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
    return fold(image_keys(key, len(target)), target)


def each(attack: Callable[[Array, Array], Any], key: Array, target: Array) -> Any:
    """Return the results of attack(keys `[B]`, target `[B]`) for all targets `[B, T]`, as leaves `[B, T, ...]`."""
    return jax.vmap(attack, 1, 1)(keys(key, target), target)


def best(results: Any, score: Array) -> Any:
    """Return the leaves `[B, ...]` of the target with the largest score `[B, T]`, the first of equal ones."""
    place = score.argmax(1)
    return jax.tree.map(lambda leaf: leaf[jnp.arange(len(place)), place], results)
