"""Integrated gradients: the mean of the gradient on the line from a baseline to the image (Sundararajan et al. 2017).

    ∫₀¹ ∇ℓ(x₀ + a (x - x₀)) da

The authors' attribution multiplies it by x - x₀, after which its sum is ℓ(x) - ℓ(x₀) (completeness). Such a product is
no direction in which an image could move, so the mean itself is compared with Δx. The integral is a sum over the
midpoints of n equal steps. Cost: n forward and backward passes. Memory is that of one.
"""

import jax
import jax.numpy as jnp

from gradalign_jax.gradients import plain
from gradalign_jax.types import Array, Gradient, LogitsFn


def make(steps: int = 50, baseline: float | Array = 0.0, times_input: bool = False) -> Gradient:
    """Build `gradient(logits_fn, key, image, label, target) -> [B, ...]`; the key is not used.

    Args:
      steps: number n of points on the line; the authors recommend 20 to 300.
      baseline: x₀, a value or an image `[...]`, in the units of the images. By default the middle of [-1, 1].
      times_input: multiply by x - x₀: the authors' attribution.

    Raises:
      ValueError: if `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be >= 1")
    at = plain.make()

    def gradient(logits_fn: LogitsFn, key: Array | None, image: Array, label: Array, target: Array) -> Array:
        start = jnp.broadcast_to(jnp.asarray(baseline, image.dtype), image.shape[1:])[None]
        line = image - start

        def add(i: Array, total: Array) -> Array:
            share = (i + 0.5) / steps
            return total + at(logits_fn, None, start + share * line, label, target)

        mean = jax.lax.fori_loop(0, steps, add, jnp.zeros_like(image)) / steps
        return line * mean if times_input else mean

    return gradient
