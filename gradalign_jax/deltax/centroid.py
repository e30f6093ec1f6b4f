"""Δx to the mean of a class: the direction in which a nearest-mean classifier moves an image.

    Δ̂x = μ_target - x,    μ_k = mean of the images of class k

It is the simplest baseline for a learned Δx: it differs between images only by x itself. Cost: one pass over the images
when it is made, then one gather and one subtraction for each batch. Source: the nearest-centroid rule of classification
(Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, section 4.3, with equal spherical covariances).
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax.types import Array, DeltaX


def check_examples(images: np.ndarray | Array, labels: np.ndarray | Array, least: int = 1) -> np.ndarray:
    """Check images and labels, and return the number of images of each class `[K]`.

    Raises:
      ValueError: if images are not floats, images and labels differ in number, labels are not integers >= 0, or a class
        up to the largest label has fewer than `least` images.
    """
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images of type {images.dtype}: cast them to floats in the range that the classifier takes")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
        raise ValueError(f"labels must be {len(images)} integers, got shape {labels.shape} of type {labels.dtype}")
    if np.min(labels) < 0:
        raise ValueError(f"labels must be >= 0, got {np.min(labels)}")
    counts = np.bincount(np.asarray(labels))
    if counts.min() < least:
        raise ValueError(f"class {counts.argmin()} has {counts.min()} images: give at least {least} of each class")
    return counts


def make(images: np.ndarray | Array, labels: np.ndarray | Array) -> DeltaX:
    """Return Δx to the mean image of the target class.

    Args:
      images: float `[N, ...]`, in the range of the images that Δx is taken of.
      labels: int `[N]`, with at least one image of every class 0 .. K - 1.

    Raises:
      ValueError: as `check_examples`.
    """
    counts = check_examples(images, labels)
    labels = np.asarray(labels)
    # Summed in float64, class by class: a running float32 sum of thousands of images loses digits.
    means = [np.asarray(images[labels == k]).mean(axis=0, dtype=np.float64) for k in range(len(counts))]
    return jax.tree_util.Partial(_delta_x, jnp.asarray(np.stack(means), jnp.float32))


def _delta_x(means: Array, image: Array, label: Array, target: Array, index: Array | None = None) -> Array:
    return means[target].astype(image.dtype) - image
