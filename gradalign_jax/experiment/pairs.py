"""The pairs of an image and a class that a projection run searches, and their layout as images × classes."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from gradalign_jax import data


class Pairs(NamedTuple):
    """All pairs of a store: pair p is `images[row[p]]` and class `target[p]`, ordered by split, image and class."""

    images: data.Split
    row: np.ndarray
    target: np.ndarray

    def find(self, index: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the numbers `[n]` of pairs, given by the images' places in the data set and the classes `[n]`."""
        classes = 1 + self.target.max()
        keys = self.images.index[self.row].astype(np.int64) * classes + self.target
        order = np.argsort(keys)
        return order[np.searchsorted(keys, np.asarray(index, np.int64) * classes + target, sorter=order)]


def select(config: ConfigDict, dataset: data.Dataset) -> Pairs:
    """Return the configured images of each configured split, with every class, or every class but their own."""
    parts = [[rows[: config.project.images or None] for rows in dataset.splits[s]] for s in config.project.splits]
    images = data.Split(*map(np.concatenate, zip(*parts, strict=True)))
    row, target = np.divmod(np.arange(len(images.label) * dataset.num_classes, dtype=np.int32), dataset.num_classes)
    kept = images.label[row] != target if config.project.skip_own_class else slice(None)
    return Pairs(images, row[kept], target[kept])


def lay_out(row: np.ndarray, chosen: np.ndarray, most: int) -> np.ndarray:
    """Lay out pairs as images × classes.

    Args:
      row: int `[P]`, the image of each pair, ascending.
      chosen: int `[n]`, the numbers of some pairs, ascending.
      most: largest D; an image with more classes takes several lines.

    Returns:
      The numbers of the chosen pairs, int `[lines, D]`: each line is one image. -1 where it has fewer than D classes.
    """
    if not len(chosen):
        return np.zeros((0, 1), np.int64)
    _, first, count = np.unique(row[chosen], return_index=True, return_counts=True)
    lines = -(-count.max() // most)  # of the image with most classes
    columns = -(-count.max() // lines)
    slot = np.arange(len(chosen)) - np.repeat(first, count)
    _, line = np.unique(np.repeat(np.arange(len(count)), count) * lines + slot // columns, return_inverse=True)
    grid = np.full((line[-1] + 1, columns), -1, np.int64)
    grid[line, slot % columns] = chosen
    return grid
