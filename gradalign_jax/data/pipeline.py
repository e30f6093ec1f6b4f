"""The order in which examples are visited, as pure functions of (key, epoch), and checks of user arrays.

Data stay on the device as uint8; a batch is a gather followed by `to_float`, inside the training step.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax.data.dataset import Split
from gradalign_jax.types import IMAGE_RANGE, Array, Batch


def to_float(image: Array) -> Array:
    """Convert images to model units: uint8 to (x / 255 - 0.5) / 0.5 in [-1, 1]; float32 is returned unchanged.

    The formula is ToTensor and Normalize(0.5, 0.5) of the authors' code.
    """
    if image.dtype == jnp.uint8:
        # Exact integers and one rounding; the formula above, when fused, exceeds [-1, 1] by one ulp.
        return (2 * image.astype(jnp.float32) - 255) / 255
    return image.astype(jnp.float32)


def epoch_order(key: Array, epoch: int | Array, size: int, take: int) -> Array:
    """Return the positions visited in an epoch: the beginning of a new permutation.

    The result depends on key and epoch alone, so that a resumed run visits the same examples.

    Args:
      key: a JAX random key.
      epoch: number of the epoch.
      size: number of examples in the split.
      take: number of positions, whole batches times the batch size (for Squares and MNIST-3/5, 200 x 12).

    Returns:
      int32 `[take]`.

    Raises:
      ValueError: `take` exceeds `size`.
    """
    if take > size:
        raise ValueError(f"an epoch of {take} examples from a split of {size}: take fewer batches")
    return jax.random.permutation(jax.random.fold_in(key, epoch), size)[:take].astype(jnp.int32)


def gather(split: Split, positions: Array) -> Batch:
    """Return the examples at `positions` (of any shape) of a split on the device, in model units."""
    return Batch(to_float(split.image[positions]), split.label[positions], split.index[positions])


def padded_blocks(size: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions 0 .. size - 1 in order, in blocks of one shape, which need one compilation.

    Returns:
      (positions int32 `[n_blocks, block]`, mask bool `[n_blocks, block]`). Where the mask is False the position
      is 0, a valid one, and its result must be ignored.
    """
    positions = np.arange(-(-size // block) * block, dtype=np.int32).reshape(-1, block)
    mask = positions < size
    return np.where(mask, positions, 0).astype(np.int32), mask


def check(
    image: np.ndarray,
    label: np.ndarray,
    num_classes: int,
    bounds: tuple[float, float] | None = IMAGE_RANGE,
) -> None:
    """Check the arrays of a user.

    Args:
      image: `[N, ...]` float in model units ([-1, 1]).
      label: `[N]` integers in 0 .. num_classes - 1.
      num_classes: number of classes.
      bounds: the range that images must lie in; None for data that exceed it by design (Squares).

    Raises:
      ValueError: a shape, type or value is wrong; the message is one line with the remedy.
    """
    image, label = np.asarray(image), np.asarray(label)
    _check_shapes(image, label)
    if not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"labels are {label.dtype}, not integers: pass label.astype('int32')")
    if label.min() < 0 or label.max() >= num_classes:
        raise ValueError(
            f"labels run from {label.min()} to {label.max()}, but {num_classes} classes are numbered"
            f" 0 to {num_classes - 1}: renumber them, or correct the number of classes"
        )
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"images are {image.dtype}, not float in [-1, 1]: pass data.to_float(image) of uint8")
    if not np.isfinite(image).all():
        bad = np.flatnonzero(~np.isfinite(image).reshape(len(image), -1).all(axis=1))
        raise ValueError(f"{len(bad)} of {len(image)} images hold NaN or infinity, the first at position {bad[0]}")
    if bounds is not None:
        _check_range(float(image.min()), float(image.max()), bounds)


def _check_shapes(image: np.ndarray, label: np.ndarray) -> None:
    if image.size == 0 or label.size == 0:
        raise ValueError(f"no examples: images {image.shape}, labels {label.shape}; check limit and filters")
    if label.ndim != 1:
        raise ValueError(f"labels have shape {label.shape}: pass one integer per image, [N]")
    if image.ndim < 2 or len(image) != len(label):
        raise ValueError(f"images {image.shape} and labels {label.shape} differ in number: pass [N, ...] and [N]")


def _check_range(low: float, high: float, bounds: tuple[float, float]) -> None:
    found = f"images lie in [{low:.4g}, {high:.4g}], not in [{bounds[0]:g}, {bounds[1]:g}]"
    slack = 1e-3 * (bounds[1] - bounds[0])  # for rounding
    if low >= 0 and high > 2 * bounds[1]:
        raise ValueError(f"{found}: they look like [0, 255]; pass x / 127.5 - 1, or data.to_float of uint8")
    if low < bounds[0] - slack or high > bounds[1] + slack:
        raise ValueError(f"{found}: undo the normalization (it belongs to the model), or pass bounds=(low, high)")
    if bounds is IMAGE_RANGE and low >= 0:  # the default: bounds that a caller gives are an answer
        raise ValueError(
            f"{found}: they look like [0, 1]; pass 2 * x - 1, or bounds=(0, 1); bounds=(-1, 1) accepts them as they are"
        )
