"""Squares: a large or a small square under smooth noise, 224 x 224 x 1 float32 (paper 3.2, A.1)."""

from gradalign_jax.data.dataset import Dataset
from gradalign_jax.data.directories import Folder
from gradalign_jax.data.squares import Recipe, load_recipe

RECIPE = Recipe("squares", 224, (142, 88), sigma=2.5, noise=0.5, clip=None)


def load(data_dir: Folder = None, cache_dir: Folder = None, limit: int | None = None) -> Dataset:
    """Return Squares, generated once and cached: 10,000 / 200 / 1,000 images."""
    del data_dir
    dataset = load_recipe(RECIPE, cache_dir, limit)
    return dataset._replace(notes=("Squares is not clipped: about 17 % of pixels lie outside [-1, 1]",))
