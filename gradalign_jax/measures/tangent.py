"""How much of a gradient lies in the tangent space of the images that a generator makes.

    |P g|² / |g|²,    P the orthogonal projection onto the columns of ∂G(z, c)/∂z

at the latent z whose image G(z, c) is closest to x. Gradients of robust classifiers are said to lie near the tangent
space of the data (Srinivas, Bordt and Lakkaraju 2023; Bordt et al. 2023). A random vector of n numbers has a share of
d / n in a space of d dimensions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradalign_jax.ops import platform
from gradalign_jax.types import Array

_PASSES = 2048  # of one image through the generator at once on a GPU or TPU; a CPU makes one of the batch

GenerateFn = Callable[[Array, Array], Array]  # latents [B, d], classes [B] -> images [B, ...]


def jacobian(generate_fn: GenerateFn, z: Array, label: Array) -> Array:
    """Return ∂G(z, c)/∂z `[B, n, d]` of latents `[B, d]` and classes `[B]`, for images of n values.

    The d columns are computed for the whole batch at once, a few at a time. Each costs about a forward pass: J v is the
    derivative of u -> Jᵀ u in the direction of v, because the layers of this package have no forward mode.
    """
    batch, latent = z.shape
    image, pull_back = jax.vjp(lambda z: generate_fn(z, label), z)
    push_forward = jax.vjp(lambda u: pull_back(u)[0], jnp.zeros_like(image))[1]

    def column(direction: Array) -> Array:
        return push_forward(jnp.broadcast_to(direction[None], z.shape))[0].reshape(batch, -1)

    together = None if platform.is_cpu() else max(1, min(latent, _PASSES // batch))
    columns = jax.lax.map(column, jnp.eye(latent, dtype=z.dtype), batch_size=together)  # [d, B, n]
    return columns.transpose(1, 2, 0)


def basis(jacobian: Array) -> Array:
    """Return an orthonormal basis `[B, n, d]` of the columns of `[B, n, d]`.

    Where they span r < d dimensions to within float rounding, d - r columns are 0.

    Raises:
      ValueError: if d exceeds n.
    """
    rows, columns = jacobian.shape[-2:]
    if rows < columns:
        raise ValueError(f"{columns} latents for images of {rows} values: a tangent space needs fewer latents")
    q, r = jnp.linalg.qr(jacobian)
    # Q alone would have arbitrary columns where the columns of J depend on one another.
    u, s, _ = jnp.linalg.svd(r)
    kept = s > rows * jnp.finfo(s.dtype).eps * s[..., :1]
    return jnp.matmul(q, jnp.where(kept[..., None, :], u, 0), precision="highest")


def project(basis: Array, vector: Array) -> Array:
    """Return the part of vectors `[B, ...]` in the space of an orthonormal basis `[B, n, d]`."""
    flat = vector.reshape(len(vector), -1)
    inside = jnp.einsum("bnd,bn->bd", basis, flat, precision="highest")
    return jnp.einsum("bnd,bd->bn", basis, inside, precision="highest").reshape(vector.shape)


def share(basis: Array, gradient: Array) -> Array:
    """Return |P g|² / |g|² `[B]` for an orthonormal basis `[B, n, d]` and gradients `[B, ...]`; 0 where g is 0."""
    flat = gradient.reshape(len(gradient), -1)
    scale = jnp.max(jnp.abs(flat), axis=-1, keepdims=True)  # the squares of very small gradients would vanish
    flat = jnp.where(scale > 0, flat / jnp.where(scale > 0, scale, 1), flat)
    inside = jnp.einsum("bnd,bn->bd", basis, flat, precision="highest")
    whole = jnp.sum(flat**2, axis=-1)
    return jnp.sum(inside**2, axis=-1) / jnp.where(whole == 0, 1, whole)
