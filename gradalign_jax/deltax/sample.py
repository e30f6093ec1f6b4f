"""Δx to one image of a class, sampled at random: the baseline that uses nothing but the labels.

    Δ̂x = a - x,    a uniform over the images of class `target`

Over many images its mean is that of `centroid`, but each vector also holds all that differs between two images of two
classes. The image is a function of `index` alone, so an image meets the same vector in every epoch. Cost: one gather
for each batch.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax.deltax.centroid import check_examples
from gradalign_jax.types import Array, DeltaX


def make(images: np.ndarray | Array, labels: np.ndarray | Array, seed: int = 0) -> DeltaX:
    """Return Δx to a random image of the target class.

    Args:
      images: float `[N, ...]`, in the range of the images that Δx is taken of.
      labels: int `[N]`, with at least one image of every class 0 .. K - 1.
      seed: of the choice. Without `index` all images get the image that index 0 gets.

    Raises:
      ValueError: as `check_examples`.
    """
    counts = check_examples(images, labels)
    order = np.argsort(np.asarray(labels), kind="stable").astype(np.int32)
    first = np.cumsum(counts) - counts
    arrays = {"images": images, "order": order, "first": first.astype(np.int32), "count": counts.astype(np.int32)}
    return jax.tree_util.Partial(_delta_x, jax.tree.map(jnp.asarray, arrays | {"seed": np.uint32(seed)}))


def _delta_x(arrays: dict[str, Array], image: Array, label: Array, target: Array, index: Array | None = None) -> Array:
    index = jnp.zeros_like(target) if index is None else index
    base = jax.random.key(arrays["seed"])

    def choose(index: Array, target: Array) -> Array:
        key = jax.random.fold_in(base, index)
        place = jax.random.randint(key, (), 0, arrays["count"][target])
        return arrays["order"][arrays["first"][target] + place]

    chosen = jax.vmap(choose)(jnp.asarray(index), jnp.asarray(target))
    return arrays["images"][chosen].astype(image.dtype) - image
