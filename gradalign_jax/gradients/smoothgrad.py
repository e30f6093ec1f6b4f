"""SmoothGrad: the mean of the gradient over noisy copies of the image (Smilkov et al. 2017).

    1/n Σ_i ∇ℓ(x + σ u_i),    u_i ~ N(0, 1),    σ = noise (max x - min x)

Cost: n forward and backward passes. Memory is that of one.
"""

import jax
import jax.numpy as jnp

from gradalign_jax.attacks.pgd import image_keys
from gradalign_jax.gradients import plain
from gradalign_jax.types import Array, Gradient, LogitsFn


def make(samples: int = 50, noise: float = 0.15) -> Gradient:
    """Build `gradient(logits_fn, key, image, label, target) -> [B, ...]`.

    `key` is one key, or one per image `[B]`; in the latter case an image's noise does not depend on the rest of its
    batch.

    Args:
      samples: number n of noisy copies.
      noise: standard deviation as a share of each image's range; the authors recommend .1 to .2.

    Raises:
      ValueError: if `samples` is below 1 or `noise` is negative; from the gradient, if it gets no key.
    """
    if samples < 1 or noise < 0:
        raise ValueError(f"samples must be >= 1 and noise >= 0, got samples={samples}, noise={noise}")
    at = plain.make()

    def gradient(logits_fn: LogitsFn, key: Array | None, image: Array, label: Array, target: Array) -> Array:
        if key is None:
            raise ValueError("smoothgrad needs a random key: give one, or one per image")
        keys = image_keys(key, len(image))
        axes = tuple(range(1, image.ndim))
        sigma = noise * (image.max(axes, keepdims=True) - image.min(axes, keepdims=True))

        def add(i: Array, total: Array) -> Array:
            drawn = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i), image.shape[1:], image.dtype))(keys)
            return total + at(logits_fn, None, image + sigma * drawn, label, target)

        return jax.lax.fori_loop(0, samples, add, jnp.zeros_like(image)) / samples

    return gradient
