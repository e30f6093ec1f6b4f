"""What a data set is: its splits on the host, or a way to sample it, and what is known about it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from gradalign_jax.types import DeltaX


class Split(NamedTuple):
    """One split, on the host (after `jax.device_put` also its copy on the device).

    image: uint8 `[N, H, W, C]`, or float32 in model units where the source is float (Squares).
    label: int32 `[N]`. index: int32 `[N]`, each example's place in the whole data set (keys cached Δx).
    """

    image: np.ndarray
    label: np.ndarray
    index: np.ndarray


class Dataset(NamedTuple):
    """A data set.

    splits: "train", "validation" and "test"; empty for a data set that is sampled (Spheres).
    sample: for a sampled data set, `sample(key, count)` or `sample(key, indices=i)` -> `Batch`.
    delta_x: the exact Δx where it is known, otherwise None.
    augment: (key, image of the training split [H, W, C]) -> image_shape, drawn anew at every visit; None: as it is.
    notes: facts that a result must carry, such as a lossy copy of the images.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, ...]
    splits: Mapping[str, Split]
    sample: Callable | None = None
    delta_x: DeltaX | None = None
    augment: Callable | None = None
    notes: tuple[str, ...] = ()
