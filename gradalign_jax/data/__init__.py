"""Data sets by name, and the order in which their examples are visited.

    dataset = data.load("cifar10")
    dataset.splits["train"].image       # uint8 [45000, 32, 32, 3]

A new data set is one function `name(data_dir, cache_dir, limit) -> Dataset` and one row of `_MODULES`.
"""

import difflib
import importlib

from gradalign_jax.data.cache import Folder
from gradalign_jax.data.dataset import Dataset, Split
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

# Which module of this package holds the function of that name; imported only when asked for.
_MODULES = {
    "spheres": "synthetic",
    "squares": "synthetic",
    "squares32": "synthetic",
    "mnist35": "tfds",
    "mnist": "tfds",
    "cifar10": "tfds",
    "copd": "radiographs",
}
NAMES = tuple(_MODULES)


def load(
    name: str,
    data_dir: Folder = None,
    cache_dir: Folder = None,
    limit: int | None = None,
    **options: Folder,
) -> Dataset:
    """Loads a data set of the paper (Table S1) onto the host.

    Args:
      name: one of `NAMES`.
      data_dir: where `tensorflow_datasets` keeps prepared data; default $TFDS_DATA_DIR, then
        ~/tensorflow_datasets. Only MNIST and CIFAR-10 read it.
      cache_dir: where decoded or generated arrays are kept; default $XDG_CACHE_HOME/gradalign_jax, then
        ~/.cache/gradalign_jax.
      limit: keep only the first `limit` examples of every split (the paper uses all).
      options: those of the data set's own function (`folder` and `table` of "copd").

    Raises:
      DataError (a ValueError): the name is unknown, or the data are missing, damaged or foreign.
    """
    if name not in _MODULES:
        nearest = difflib.get_close_matches(str(name).lower(), NAMES, n=1, cutoff=0.0)[0]
        raise DataError(f"unknown data set {name!r}: did you mean {nearest!r}? (one of {', '.join(NAMES)})")
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}, but a split needs at least 1 example; leave it out for all")
    module = importlib.import_module(f"gradalign_jax.data.{_MODULES[name]}")
    return getattr(module, name)(data_dir, cache_dir, limit, **options)
