"""Etmann's alignment of an image with a gradient (Etmann et al. 2019, Definition 4).

    α(x) = |<x, g>| / |g|

With g the gradient of the predicted class's logit it is the authors' measure; the ᾱ_x of the paper (Eq. 18) is the same
divided by |x|, a cosine. For a classifier that is linear around x, α is the distance from the image to where that
logit, less its bias, is 0; it grows with the scale of the images.
"""

import jax
import jax.numpy as jnp

from gradalign_jax.types import Array, LogitsFn, predicted


def alignment(image: Array, gradient: Array) -> Array:
    """Return α `[B]`, in L2 units of the image, of images and gradients `[B, ...]`; 0 where the gradient is 0."""
    x, g = (rows.reshape(len(rows), -1) for rows in (image, gradient))
    scale = jnp.max(jnp.abs(g), axis=-1, keepdims=True)  # the squares of very small gradients would vanish
    g = jnp.where(scale > 0, g / jnp.where(scale > 0, scale, 1), g)
    norm = jnp.linalg.norm(g, axis=-1)
    return jnp.abs(jnp.sum(x * g, axis=-1)) / jnp.where(norm == 0, 1, norm)


def predicted_gradient(logits_fn: LogitsFn, image: Array) -> Array:
    """Return the gradient `[B, ...]` of the logit of the predicted class: the g of the authors' measure."""
    logits, pull_back = jax.vjp(logits_fn, image)
    # Of equal logits the first: the gradient of their maximum would be a mean over them.
    return pull_back(jax.nn.one_hot(predicted(logits), logits.shape[-1], dtype=logits.dtype))[0]
