"""Generation of Squares and Squares32 with the settings of the authors' code (paper 3.2, A.1).

The images come from NumPy's legacy random stream, whose order of draws is part of the data set's definition.
"""

import functools
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gradalign_jax.data import cache
from gradalign_jax.data.dataset import Dataset, Split
from gradalign_jax.data.directories import Folder
from gradalign_jax.deltax import exact
from gradalign_jax.terminal import progress_bar

_SPLITS = {"train": (7, 10_000), "validation": (8, 200), "test": (9, 1_000)}  # seed, size
_BLOCK = 16  # images filtered at a time: small enough for the cache of one core
_THREADS = 4


class Recipe(NamedTuple):
    """Parameters of one data set; lengths in pixels, intensities in units of [-1, 1].

    Attributes:
      name: name of the data set.
      size: height and width of the images.
      sides: side of the square in class 0 and in class 1.
      sigma: standard deviation of the Gaussian filter that smooths the noise.
      noise: standard deviation of the smooth noise within an image.
      clip: bound on the noise's absolute value; None: no bound.
    """

    name: str
    size: int
    sides: tuple[int, int]
    sigma: float
    noise: float
    clip: float | None


def load_recipe(recipe: Recipe, cache_dir: Folder, limit: int | None) -> Dataset:
    """Return the data set of a recipe, from the cache or generated; for the arguments see `data.load`."""
    counts = {name: min(size, limit or size) for name, (_, size) in _SPLITS.items()}
    # Another SciPy may round the filter differently.
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


def _generate(recipe: Recipe, counts: Mapping[str, int]) -> cache.Arrays:
    arrays = {}
    with progress_bar(total=sum(counts.values()), desc=f"generating {recipe.name}", unit="image") as bar:
        for name, (seed, size) in _SPLITS.items():
            image, label = _draw_split(recipe, seed, size, counts[name], bar)
            arrays |= {f"{name}-image": image, f"{name}-label": label}
    return arrays


def _draw_split(recipe: Recipe, seed: int, size: int, count: int, bar: tqdm) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `count` of `size` images and their labels, from one stream: all scales, then the noise fields.

    Random numbers are drawn sequentially; filtering, which releases the GIL, runs in parallel threads.
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
            if len(pending) > 2 * _THREADS:  # bounds the noise held in memory
                pending.popleft().result()
        for future in pending:
            future.result()
    return image, label


def _smooth(recipe: Recipe, field: np.ndarray) -> np.ndarray:
    from scipy import ndimage  # slow to import, and only needed here

    # The settings of skimage.filters.gaussian, which the authors' code calls.
    sigma = (0, recipe.sigma, recipe.sigma)
    smooth = ndimage.gaussian_filter(field, sigma, mode="nearest", truncate=4.0)
    smooth *= recipe.noise / smooth.std(axis=(1, 2), keepdims=True)
    return smooth if recipe.clip is None else np.clip(smooth, -recipe.clip, recipe.clip)
