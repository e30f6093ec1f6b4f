"""Δx to the closest point of a small patch of a class: its nearest examples, and everything between them.

    Δ̂x = Σ_i w_i a_i - x,    w = argmin |Σ_i w_i a_i - x|²   subject to Σ_i w_i = 1 and, in the simplex, w_i >= 0

over the k nearest examples a_1 .. a_k of class `target`. The simplex is their convex hull; without w >= 0 it is their
affine hull, the local linear approximation of the class's manifold. With k = 1 both are `nearest`. In the affine hull w
is the solution of G u = 1, divided by Σ u, with G_ij = (a_i - x) · (a_j - x), as in locally linear embedding (Roweis
and Saul 2000). G gets a ridge of `ridge` times its mean eigenvalue, because examples can be linearly dependent. In the
simplex w is found by accelerated projected gradient steps (Beck and Teboulle 2009).

Cost: the search of `nearest`, then B k² n FLOP for G, and k x k systems.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax.deltax import nearest
from gradalign_jax.deltax.nearest import Examples
from gradalign_jax.types import Array, DeltaX

HULLS = ("simplex", "affine")
_STEPS = 300  # of the simplex; k x k products, cheap beside the search


def make(
    images: np.ndarray | Array,
    labels: np.ndarray | Array,
    k: int = 8,
    hull: str = "simplex",
    ridge: float = 1e-3,
    block: int = 4096,
) -> DeltaX:
    """Return Δx to the closest point of the hull of the k nearest images of the target class.

    Args:
      images: float `[N, ...]`, in the range of the images that Δx is taken of.
      labels: int `[N]`, with at least k images of every class 0 .. K - 1.
      k: number of nearest images.
      hull: "simplex" or "affine".
      ridge: of the affine hull's system, relative to the mean eigenvalue.
      block: number of examples compared at a time.

    Raises:
      ValueError: if the hull is unknown, and as `nearest.make`.
    """
    if hull not in HULLS:
        raise ValueError(f"unknown hull {hull!r}: use one of {', '.join(HULLS)}")
    weights = partial(affine_weights, ridge=ridge) if hull == "affine" else simplex_weights
    examples = nearest.blocked(images, labels, k, block)
    return jax.tree_util.Partial(partial(_delta_x, k, weights), examples)


def affine_weights(gram: Array, ridge: float) -> Array:
    """Return the weights `[B, k]`, of sum 1, that minimize wᵀ (G + r I) w for G `[B, k, k]`, r = ridge · tr G / k."""
    k = gram.shape[-1]
    scale = jnp.trace(gram, axis1=1, axis2=2)[:, None, None] / k
    scaled = gram / jnp.where(scale > 0, scale, 1) + ridge * jnp.eye(k)[None]
    solved = jnp.linalg.solve(scaled, jnp.ones((*gram.shape[:2], 1), gram.dtype))[..., 0]
    return solved / jnp.sum(solved, axis=1, keepdims=True)


def simplex_weights(gram: Array) -> Array:
    """Return the weights `[B, k]`, of sum 1 and >= 0, that minimize wᵀ G w for G `[B, k, k]`, positive semidefinite."""
    k = gram.shape[-1]
    # The largest eigenvalue is at most the largest sum of a row.
    bound = jnp.max(jnp.sum(jnp.abs(gram), axis=2), axis=1)[:, None]
    bound = jnp.where(bound > 0, bound, 1)

    def step(i, carry):
        w, ahead = carry
        slope = jnp.einsum("bij,bj->bi", gram, ahead, precision="highest")
        stepped = onto_simplex(ahead - slope / bound)
        # Momentum restarts where it climbs (O'Donoghue and Candès 2015).
        climbs = jnp.sum(slope * (stepped - w), axis=1, keepdims=True) > 0
        return stepped, jnp.where(climbs, stepped, stepped + (stepped - w) * (i / (i + 3.0)))

    start = jnp.full(gram.shape[:2], 1 / k, gram.dtype)
    return jax.lax.fori_loop(0, _STEPS, step, (start, start))[0]


def onto_simplex(v: Array) -> Array:
    """Return the closest point of {w >= 0, Σ w = 1} to each row of `[B, k]` (Held, Wolfe and Crowder 1974)."""
    k = v.shape[1]
    down = -jnp.sort(-v, axis=1)
    shift = (jnp.cumsum(down, axis=1) - 1) / jnp.arange(1, k + 1, dtype=v.dtype)[None]
    count = jnp.sum(down > shift, axis=1, keepdims=True)
    return jnp.maximum(v - jnp.take_along_axis(shift, count - 1, axis=1), 0)


def _delta_x(
    k: int, weights, examples: Examples, image: Array, label: Array, target: Array, index: Array | None = None
) -> Array:
    difference = nearest.differences(examples, image, target, k)
    gram = jnp.einsum("bin,bjn->bij", difference, difference, precision="highest")
    return (
        jnp.einsum("bk,bkn->bn", weights(gram), difference, precision="highest")
        .reshape(image.shape)
        .astype(image.dtype)
    )
