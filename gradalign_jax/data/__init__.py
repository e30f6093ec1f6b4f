"""Data sets by name, and the order in which their examples are visited.

    dataset = data.load("cifar10")
    dataset.splits["train"].image       # uint8 [45000, 32, 32, 3]

A new data set is one new file, `data/sets/<name>.py`, with a function `load(data_dir, cache_dir, limit) -> Dataset`.
"""

import difflib
import importlib
import pkgutil

from gradalign_jax.data import sets
from gradalign_jax.data.dataset import Dataset, Split
from gradalign_jax.data.directories import Folder
from gradalign_jax.data.pipeline import check, epoch_order, gather, padded_blocks, to_float
from gradalign_jax.errors import DataError

__all__ = [
    "NAMES",
    "DataError",
    "Dataset",
    "Split",
    "check",
    "epoch_order",
    "gather",
    "load",
    "padded_blocks",
    "to_float",
]

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(sets.__path__)))


def load(
    name: str,
    data_dir: Folder = None,
    cache_dir: Folder = None,
    limit: int | None = None,
    **options: Folder,
) -> Dataset:
    """Load a data set of the paper (Table S1) onto the host.

    Args:
      name: one of `NAMES`.
      data_dir: directory of `tensorflow_datasets`, or of MNIST's original idx files; default $TFDS_DATA_DIR, then
        ~/tensorflow_datasets. Only MNIST, MNIST-3/5 and CIFAR-10 read it.
      cache_dir: directory for decoded or generated arrays; default $XDG_CACHE_HOME/gradalign_jax, then
        ~/.cache/gradalign_jax.
      limit: number of examples per split, from its beginning; None: all, as in the paper.
      **options: further arguments of the data set's own `load` (`folder` and `table` of "copd").

    Raises:
      DataError: the name is unknown, or the data are missing, damaged or not the expected ones.
    """
    if name not in NAMES:
        nearest = difflib.get_close_matches(str(name).lower(), NAMES, n=1, cutoff=0.0)[0]
        raise DataError(f"unknown data set {name!r}: did you mean {nearest!r}? (one of {', '.join(NAMES)})")
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}, but a split needs at least 1 example; omit it for all examples")
    module = importlib.import_module(f"gradalign_jax.data.sets.{name}")
    return module.load(data_dir, cache_dir, limit, **options)
