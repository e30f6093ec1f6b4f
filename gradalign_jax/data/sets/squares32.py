"""Squares32: Squares with 32 x 32 x 1 pixels and clipped noise, float32 in [-1, 1] (paper A.1)."""

from gradalign_jax.data.dataset import Dataset
from gradalign_jax.data.directories import Folder
from gradalign_jax.data.squares import Recipe, load_recipe

RECIPE = Recipe("squares32", 32, (20, 12), sigma=1.0, noise=0.25, clip=0.5)


def load(data_dir: Folder = None, cache_dir: Folder = None, limit: int | None = None) -> Dataset:
    """Return Squares32, generated once and cached: 10,000 / 200 / 1,000 images."""
    del data_dir
    return load_recipe(RECIPE, cache_dir, limit)
