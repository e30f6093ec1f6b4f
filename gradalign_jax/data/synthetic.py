"""Spheres and Squares (paper 3.2 and A.1), with the settings of the authors' code.

Spheres are sampled on the device. Squares are generated once from NumPy's legacy stream, whose draws are
part of the data set's definition, and kept in the cache.
"""

import functools
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gradalign_jax.data import cache
from gradalign_jax.data.cache import Folder
from gradalign_jax.data.dataset import Dataset, Split
from gradalign_jax.deltax import exact
from gradalign_jax.types import Array, Batch

SPHERES_DIMENSION = 500
_SPLITS = {"train": (7, 10_000), "validation": (8, 200), "test": (9, 1_000)}  # seed, size
_BLOCK = 16  # images filtered at a time: small enough for the cache of one core
_THREADS = 4


def sample_spheres(key: Array, count: int | None = None, *, indices: Array | None = None) -> Batch:
    """Samples points on two spheres of radius 1.0 (class 0) and 1.3 (class 1), uniformly.

    Example i comes from `fold_in(key, i)`, so that it does not depend on how a batch is divided among
    devices: each device passes its own `indices`.

    Args:
      key: a JAX random key.
      count: number of examples, 0 .. count - 1; or
      indices: int32 `[B]`, which examples.

    Returns:
      Batch(image float32 `[B, 500]`, label int32 `[B]`, index int32 `[B]`).
    """
    if indices is None:
        indices = jnp.arange(count, dtype=jnp.int32)

    def one(i: Array) -> tuple[Array, Array]:
        direction_key, label_key = jax.random.split(jax.random.fold_in(key, i))
        direction = jax.random.normal(direction_key, (SPHERES_DIMENSION,))
        label = jax.random.bernoulli(label_key).astype(jnp.int32)
        radius = jnp.asarray(exact.RADII, jnp.float32)[label]
        return direction * (radius / jnp.linalg.norm(direction)), label

    image, label = jax.vmap(one)(indices)
    return Batch(image, label, indices.astype(jnp.int32))


def spheres(data_dir: Folder = None, cache_dir: Folder = None, limit: int | None = None) -> Dataset:
    """Returns Spheres: 500 dimensions, sampled, nothing read; the arguments are those of `data.load`."""
    return Dataset(
        name="spheres",
        num_classes=2,
        image_shape=(SPHERES_DIMENSION,),
        splits={},
        sample=sample_spheres,
        delta_x=exact.spheres,
    )


class _Recipe(NamedTuple):
    """How one Squares data set is drawn. Lengths in pixels, intensities in units of [-1, 1]."""

    name: str
    size: int
    sides: tuple[int, int]  # of class 0 and of class 1
    sigma: float  # of the Gaussian that smooths the noise
    noise: float  # standard deviation of the noise within an image
    clip: float | None  # the noise is clipped to +- this


_SQUARES = _Recipe("squares", 224, (142, 88), sigma=2.5, noise=0.5, clip=None)
_SQUARES32 = _Recipe("squares32", 32, (20, 12), sigma=1.0, noise=0.25, clip=0.5)


def squares(data_dir: Folder = None, cache_dir: Folder = None, limit: int | None = None) -> Dataset:
    """Returns Squares, 224 x 224 x 1 float32; about 17 % of its pixels lie outside [-1, 1] (not clipped)."""
    dataset = _load_squares(_SQUARES, cache_dir, limit)
    return dataset._replace(notes=("Squares is not clipped: about 17 % of pixels lie outside [-1, 1]",))


def squares32(data_dir: Folder = None, cache_dir: Folder = None, limit: int | None = None) -> Dataset:
    """Returns Squares32, 32 x 32 x 1 float32 in [-1, 1]."""
    return _load_squares(_SQUARES32, cache_dir, limit)


def _load_squares(recipe: _Recipe, cache_dir: Folder, limit: int | None) -> Dataset:
    counts = {name: min(size, limit or size) for name, (_, size) in _SPLITS.items()}
    # Another SciPy may round the filter differently; the entry then is made anew.
    source = {"recipe": recipe._asdict(), "counts": counts, "scipy": metadata.version("scipy")}
    key = "-".join([recipe.name, *map(str, counts.values())])
    arrays = cache.fetch(cache_dir, key, source, functools.partial(_generate, recipe, counts))
    splits, start = {}, 0
    for name, (_, size) in _SPLITS.items():
        index = np.arange(start, start + counts[name], dtype=np.int32)
        splits[name] = Split(arrays[f"{name}-image"], arrays[f"{name}-label"], index)
        start += size
    return Dataset(
        name=recipe.name,
        num_classes=2,
        image_shape=(recipe.size, recipe.size, 1),
        splits=splits,
        delta_x=exact.squares(recipe.sides, recipe.size),
    )


def _generate(recipe: _Recipe, counts: Mapping[str, int]) -> cache.Arrays:
    arrays = {}
    with tqdm(total=sum(counts.values()), desc=f"generating {recipe.name}", unit="image", disable=None) as bar:
        for name, (seed, size) in _SPLITS.items():
            image, label = _draw_split(recipe, seed, size, counts[name], bar)
            arrays |= {f"{name}-image": image, f"{name}-label": label}
    return arrays


def _draw_split(recipe: _Recipe, seed: int, size: int, count: int, bar: tqdm) -> tuple[np.ndarray, np.ndarray]:
    """Draws the first `count` of `size` images: all scales first, then one field of noise per image.

    Drawing is sequential, one stream; filtering, which releases the GIL, runs beside it in threads.
    """
    stream = np.random.RandomState(seed)
    label = (stream.choice([0.5, 0.8], size)[:count] < 0.7).astype(np.int32)
    image = np.empty((count, recipe.size, recipe.size, 1), np.float32)
    clean = np.stack([exact.centred_square(recipe.size, side) - 0.5 for side in recipe.sides])

    def finish(start: int, field: np.ndarray) -> None:
        stop = start + len(field)
        image[start:stop, ..., 0] = clean[label[start:stop]] + _smooth(recipe, field)
        bar.update(len(field))

    with ThreadPoolExecutor(_THREADS) as pool:
        pending: deque = deque()
        for start in range(0, count, _BLOCK):
            block = min(_BLOCK, count - start)
            pending.append(pool.submit(finish, start, stream.normal(size=(block, recipe.size, recipe.size))))
            if len(pending) > 2 * _THREADS:  # bounds the noise waiting in memory
                pending.popleft().result()
        for future in pending:
            future.result()
    return image, label


def _smooth(recipe: _Recipe, field: np.ndarray) -> np.ndarray:
    from scipy import ndimage  # slow to import, and only this needs it

    # The settings of skimage.filters.gaussian, which the authors call.
    sigma = (0, recipe.sigma, recipe.sigma)
    smooth = ndimage.gaussian_filter(field, sigma, mode="nearest", truncate=4.0)
    smooth *= recipe.noise / smooth.std(axis=(1, 2), keepdims=True)
    return smooth if recipe.clip is None else np.clip(smooth, -recipe.clip, recipe.clip)
