"""Δx by optimal transport between classes: an image goes where its class as a whole would move at the least cost.

    Δ̂x = Σ_j w_j a_j - x,    w = softmax_j((g_j - |x - a_j|²) / ε)

over m fixed images a_1 .. a_m of class `target`. The dual potentials g [m] of each pair of classes come from Sinkhorn's
algorithm (Cuturi 2013) between the m images of the one class and the m images of the other, both with uniform
weights, in the logarithmic domain. For one of those images w is its row of the transport plan times m, and the sum its
barycentric target. For any other image it is the entropic map of Pooladian and Niles-Weed (2021), a function of that
image alone, so Δ̂x does not depend on the rest of the batch. ε is relative to the mean cost of the pair of classes.
Unlike `nearest`, it does not send many images to the same few examples: every a_j receives the same total weight.

Cost: K² problems of `iterations` passes over m x m costs when it is made, then 2 B n K m FLOP for each batch.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax.deltax.centroid import check_examples
from gradalign_jax.types import Array, DeltaX


def make(
    images: np.ndarray | Array,
    labels: np.ndarray | Array,
    count: int = 512,
    epsilon: float = 0.02,
    iterations: int = 100,
    seed: int = 0,
) -> DeltaX:
    """Return Δx to the barycentric target of a transport plan between samples of the classes.

    Args:
      images: float `[N, ...]`, in the range of the images that Δx is taken of.
      labels: int `[N]`, with at least one image of every class 0 .. K - 1.
      count: number m of images of each class, or all of the smallest class if it has fewer.
      epsilon: ε, relative to the mean squared distance of the two samples.
      iterations: of Sinkhorn's algorithm.
      seed: of the choice of images.

    Raises:
      ValueError: if a number is not above 0, and as `check_examples`.
    """
    if not min(count, epsilon, iterations) > 0:
        raise ValueError(
            f"count, epsilon and iterations must be > 0, got count={count}, epsilon={epsilon}, iterations={iterations}"
        )
    counts = check_examples(images, labels)
    count = min(count, int(counts.min()))
    rng, labels = np.random.default_rng(seed), np.asarray(labels)
    chosen = [rng.choice(np.flatnonzero(labels == c), count, replace=False) for c in range(len(counts))]
    points = jnp.stack([jnp.asarray(images[np.sort(c)], jnp.float32).reshape(count, -1) for c in chosen])  # [K, m, n]
    return jax.tree_util.Partial(partial(_delta_x, len(counts)), *_potentials(points, epsilon, iterations), points)


@partial(jax.jit, static_argnums=2)
def _potentials(points: Array, epsilon: Array, iterations: int) -> tuple[Array, Array]:
    """Return g `[K, K, m]` of each pair (source, target), and its absolute ε `[K, K]`."""
    classes = len(points)

    def of_pair(pair: Array) -> tuple[Array, Array]:
        cost = squared_distances(points[pair // classes], points[pair % classes])
        absolute = epsilon * jnp.mean(cost)
        absolute = jnp.where(absolute > 0, absolute, 1)
        return sinkhorn(cost, absolute, iterations)[1], absolute

    g, absolute = jax.lax.map(of_pair, jnp.arange(classes**2))
    return g.reshape(classes, classes, -1), absolute.reshape(classes, classes)


def squared_distances(a: Array, b: Array) -> Array:
    """Return |a_i - b_j|² `[M, N]` of the rows of `[M, n]` and `[N, n]`, as one product."""
    product = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum(jnp.sum(a**2, axis=1)[:, None] - 2 * product + jnp.sum(b**2, axis=1)[None], 0)


def sinkhorn(cost: Array, epsilon: float | Array, iterations: int) -> tuple[Array, Array]:
    """Return the dual potentials f `[M]` and g `[N]` of entropic transport between uniform weights.

    The plan is P_ij = exp((f_i + g_j - C_ij) / ε) / (M N). g is updated last and f recomputed from it, so the rows of P
    sum to 1 / M; the sums of its columns tend to 1 / N.

    Args:
      cost: C `[M, N]`.
      epsilon: the weight of the entropy, in the units of the cost.
      iterations: number of updates of each potential.
    """
    rows, columns = cost.shape

    def to_f(g: Array) -> Array:
        return -epsilon * (jax.nn.logsumexp((g[None] - cost) / epsilon, axis=1) - jnp.log(columns))

    def to_g(f: Array) -> Array:
        return -epsilon * (jax.nn.logsumexp((f[:, None] - cost) / epsilon, axis=0) - jnp.log(rows))

    g = jax.lax.fori_loop(0, iterations, lambda _, g: to_g(to_f(g)), jnp.zeros(columns, cost.dtype))
    return to_f(g), g


def _delta_x(
    classes: int,
    potentials: Array,
    epsilon: Array,
    points: Array,
    image: Array,
    label: Array,
    target: Array,
    index: Array | None = None,
) -> Array:
    flat = image.reshape(len(image), -1).astype(jnp.float32)
    every = points.reshape(-1, points.shape[2])  # one product with all classes, instead of a gather of m images each
    cost = squared_distances(flat, every).reshape(len(flat), classes, -1)
    score = (potentials[label, target][:, None] - cost) / epsilon[label, target][:, None, None]
    score = jnp.where((jnp.arange(classes)[None] == target[:, None])[..., None], score, -jnp.inf)
    weight = jax.nn.softmax(score.reshape(len(flat), -1), axis=1)
    moved = jnp.matmul(weight, every, precision="highest")
    return (moved - flat).reshape(image.shape).astype(image.dtype)
