"""MNIST-3/5: the digits 3 (class 0) and 5 (class 1) of MNIST (paper 3.1)."""

import numpy as np

from gradalign_jax.data import public
from gradalign_jax.data.dataset import Dataset
from gradalign_jax.data.directories import Folder


def load(data_dir: Folder = None, cache_dir: Folder = None, limit: int | None = None) -> Dataset:
    """Return MNIST-3/5: 10,397 / 1,155 / 1,902 images; for the arguments see `data.load`."""
    dataset = public.load("mnist35", public.MNIST, data_dir, cache_dir, limit, digits=(3, 5))
    if limit is not None or not all(len(split.label) for split in dataset.splits.values()):
        return dataset
    shares = ", ".join(f"{100 * np.mean(split.label == 0):.1f}" for split in dataset.splits.values())
    note = f"class -1 (digit 3) makes up {shares} % of train, validation and test; Table S1 prints 53.1 for each"
    return dataset._replace(notes=(*dataset.notes, note))
