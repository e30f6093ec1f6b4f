"""The interface of a data set: splits on the host or a sampling function, and its properties."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from gradalign_jax.types import DeltaX


class Split(NamedTuple):
    """One split, on the host (after `jax.device_put`, its copy on the device).

    Attributes:
      image: uint8 `[N, H, W, C]`, or float32 in model units where the source is float (Squares).
      label: int32 `[N]`.
      index: int32 `[N]`, each example's position in the whole data set (the key of a cached Δx).
    """

    image: np.ndarray
    label: np.ndarray
    index: np.ndarray


class Dataset(NamedTuple):
    """A data set.

    Attributes:
      name: its name in `data.load`.
      num_classes: number of classes K.
      image_shape: shape of one image as the model sees it, `(H, W, C)`; Spheres: `(500,)`.
      splits: "train", "validation" and "test"; empty for a data set that is sampled (Spheres).
      sample: for a sampled data set, `sample(key, count)` or `sample(key, indices=i)` -> `Batch`; otherwise None.
      delta_x: the exact Δx if it has a closed form, otherwise None.
      augment: (key, training image `[H, W, C]`) -> image of `image_shape`, applied at every visit; None: identity.
      notes: facts that every result must report, such as lossy compression of the images.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, ...]
    splits: Mapping[str, Split]
    sample: Callable | None = None
    delta_x: DeltaX | None = None
    augment: Callable | None = None
    notes: tuple[str, ...] = ()
