"""Robustness to noise on and off the manifold of a generator's images (Srinivas, Bordt and Lakkaraju 2023).

Gaussian noise is split into its parts in the tangent space and orthogonal to it, and each part is scaled to a length r:

    change = |softmax(logits(x + r u / |u|)) - softmax(logits(x))|₁

as in the authors' code. A classifier is more robust off the manifold than on it where the second change is smaller.
"""

import jax
import jax.numpy as jnp

from gradalign_jax.attacks.pgd import image_keys
from gradalign_jax.measures import tangent
from gradalign_jax.types import Array, LogitsFn


def change(logits_fn: LogitsFn, key: Array, image: Array, basis: Array, radius: float | Array) -> tuple[Array, Array]:
    """Return the changes `[B]`, 0 to 2, by noise in the tangent space and orthogonal to it, one sample each.

    Args:
      logits_fn: the classifier.
      key: one key, or one per image `[B]`.
      image: `[B, ...]`.
      basis: orthonormal, of the tangent space, `[B, n, d]`.
      radius: L2 norm of the noise, in the units of the images; may be traced.
    """
    drawn = jax.vmap(lambda k: jax.random.normal(k, image.shape[1:], image.dtype))(image_keys(key, len(image)))
    inside = tangent.project(basis, drawn)
    before = jax.nn.softmax(logits_fn(image))

    def moved(noise: Array) -> Array:
        norm = jnp.linalg.norm(noise.reshape(len(noise), -1), axis=-1)
        length = radius / jnp.where(norm == 0, 1, norm)
        after = jax.nn.softmax(logits_fn(image + length.reshape(-1, *(1,) * (noise.ndim - 1)) * noise))
        return jnp.abs(after - before).sum(-1)

    return moved(inside), moved(drawn - inside)
