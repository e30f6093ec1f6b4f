"""MNIST: ten digits, 28 x 28 x 1 uint8."""

from gradalign_jax.data import public
from gradalign_jax.data.dataset import Dataset
from gradalign_jax.data.directories import Folder


def load(data_dir: Folder = None, cache_dir: Folder = None, limit: int | None = None) -> Dataset:
    """Return MNIST: 54,000 / 6,000 / 10,000 images; for the arguments see `data.load`."""
    return public.load("mnist", public.MNIST, data_dir, cache_dir, limit)
