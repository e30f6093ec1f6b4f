"""Spheres: points on two concentric spheres in 500 dimensions, sampled on the device (paper 3.2, A.1)."""

import jax
import jax.numpy as jnp

from gradalign_jax.data.dataset import Dataset
from gradalign_jax.data.directories import Folder
from gradalign_jax.deltax import exact
from gradalign_jax.types import Array, Batch

DIMENSION = 500


def load(data_dir: Folder = None, cache_dir: Folder = None, limit: int | None = None) -> Dataset:
    """Return Spheres; no argument has an effect, because every example is sampled."""
    del data_dir, cache_dir, limit
    return Dataset(
        name="spheres",
        num_classes=2,
        image_shape=(DIMENSION,),
        splits={},
        sample=sample,
        delta_x=exact.spheres,
    )


def sample(key: Array, count: int | None = None, *, indices: Array | None = None) -> Batch:
    """Sample points uniformly on two spheres, of radius 1.0 (class 0) and 1.3 (class 1).

    Example i comes from `fold_in(key, i)`, so that it does not depend on how a batch is divided among
    devices: each device passes its own `indices`.

    Args:
      key: a JAX random key.
      count: number of examples, 0 .. count - 1; not used if `indices` is given.
      indices: int32 `[B]`, which examples.

    Returns:
      Batch(image float32 `[B, 500]`, label int32 `[B]`, index int32 `[B]`).
    """
    if indices is None:
        indices = jnp.arange(count, dtype=jnp.int32)

    def one(i: Array) -> tuple[Array, Array]:
        direction_key, label_key = jax.random.split(jax.random.fold_in(key, i))
        direction = jax.random.normal(direction_key, (DIMENSION,))
        label = jax.random.bernoulli(label_key).astype(jnp.int32)
        radius = jnp.asarray(exact.RADII, jnp.float32)[label]
        return direction * (radius / jnp.linalg.norm(direction)), label

    image, label = jax.vmap(one)(indices)
    return Batch(image, label, indices.astype(jnp.int32))
