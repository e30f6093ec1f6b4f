"""CIFAR-10: ten classes of photographs, 32 x 32 x 3 uint8."""

from gradalign_jax.data import public
from gradalign_jax.data.dataset import Dataset
from gradalign_jax.data.directories import Folder


def load(data_dir: Folder = None, cache_dir: Folder = None, limit: int | None = None) -> Dataset:
    """Return CIFAR-10: 45,000 / 5,000 / 10,000 images; for the arguments see `data.load`."""
    return public.load("cifar10", public.CIFAR10, data_dir, cache_dir, limit)
