"""Δx as the path of a targeted attack on a reference classifier, up to a large ε (Santurkar et al. 2019).

    Δ̂x = x' - x,    x' = argmin_{|x' - x|₂ <= ε} -log p(target | x')    by projected gradient descent from x

A robust classifier's inputs change into another class on the way; those of an undefended one hardly change to the eye.
So the estimate is as good as the teacher's own gradients, and a classifier aligned with it inherits them. ε must be
large enough to reach the other class, about |Δx|; the descent stops earlier where the teacher is certain. Cost: `steps`
forward and backward passes of the teacher for each image; the default is half of PGD-40 training's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gradalign_jax.attacks import pgd
from gradalign_jax.types import IMAGE_RANGE, Array, DeltaX, LogitsFn


def make(
    logits_fn: LogitsFn,
    epsilon: float,
    steps: int = 20,
    bounds: tuple[float, float] = IMAGE_RANGE,
) -> DeltaX:
    """Return Δx along a targeted L2-PGD on a classifier.

    Args:
      logits_fn: the teacher, in evaluation mode; as a `jax.tree_util.Partial` of a function and its weights, the
        weights are arguments of the programs that use Δx.
      epsilon: largest L2 norm of Δx, in the units of the images.
      steps: number of gradient steps, each of 2.5 ε / steps.
      bounds: smallest and largest value of x + Δx.

    Raises:
      ValueError: if ε is not above 0 or `steps` below 1.
    """
    if not epsilon > 0 or steps < 1:
        raise ValueError(f"epsilon must be > 0 and steps >= 1, got epsilon={epsilon}, steps={steps}")
    attack = pgd.make("l2", steps, random_start=False, bounds=bounds, targeted=True)
    arrays = {"epsilon": jnp.float32(epsilon), "step_size": jnp.float32(2.5 * epsilon / steps)}
    return jax.tree_util.Partial(partial(_delta_x, attack), jax.tree_util.Partial(logits_fn), arrays)


def _delta_x(
    attack: Callable[..., Array],
    logits_fn: LogitsFn,
    arrays: dict[str, Any],
    image: Array,
    label: Array,
    target: Array,
    index: Array | None = None,
) -> Array:
    moved = attack(logits_fn, None, image, jnp.asarray(target), arrays["epsilon"], arrays["step_size"])
    return moved - image
