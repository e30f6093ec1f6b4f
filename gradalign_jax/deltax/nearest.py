"""Δx to the nearest examples of a class: the paper's definition, with the examples as the support of the class.

    Δ̂x = Σ_i w_i a_i - x,    w = softmax(-d_i² / s),    d_i = |x - a_i|₂,    s = mean_i d_i²

over the k nearest examples a_1 .. a_k of class `target`; with k = 1 it is a_1 - x. As the examples fill the support, it
tends to the Δx of section 2.1, the vector to the closest point of the class; in many dimensions that takes very many
examples.
The softmax weights are those of kernel regression with a Gaussian kernel (Nadaraya 1964, Watson 1964).

Cost: a matrix product of B x n by n x N, so 2 B n N FLOP for each batch: 28 GFLOP for 100 images and the 45,000
examples of CIFAR-10.
Memory: the N examples and their norms on the device, and B x `block` distances.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradalign_jax.deltax.centroid import check_examples
from gradalign_jax.types import Array, DeltaX


class Examples(NamedTuple):
    """Examples in blocks of one size; the last block is filled with examples of class -1.

    flat: `[blocks, block, n]`. norm: `[blocks, block]`, squared. label: int32 `[blocks, block]`.
    """

    flat: Array
    norm: Array
    label: Array


def make(images: np.ndarray | Array, labels: np.ndarray | Array, k: int = 1, block: int = 4096) -> DeltaX:
    """Return Δx to the nearest images of the target class.

    Args:
      images: float `[N, ...]`, in the range of the images that Δx is taken of.
      labels: int `[N]`, with at least k images of every class 0 .. K - 1.
      k: number of nearest images to average.
      block: number of examples compared at a time.

    Raises:
      ValueError: if k or `block` is below 1, and as `check_examples`.
    """
    return jax.tree_util.Partial(partial(_delta_x, k), blocked(images, labels, k, block))


def blocked(images: np.ndarray | Array, labels: np.ndarray | Array, k: int, block: int) -> Examples:
    """Return the examples in blocks, on the device; arguments and errors as in `make`."""
    if min(k, block) < 1:
        raise ValueError(f"k and block must be >= 1, got k={k}, block={block}")
    check_examples(images, labels, least=k)
    count = len(labels)
    block = max(min(block, count), k)
    padding = -count % block
    flat = jnp.pad(jnp.asarray(images, jnp.float32).reshape(count, -1), ((0, padding), (0, 0)))
    label = jnp.pad(jnp.asarray(labels, jnp.int32), (0, padding), constant_values=-1)
    examples = Examples(flat, jnp.sum(flat**2, axis=1), label)
    return Examples(*(leaf.reshape(-1, block, *leaf.shape[1:]) for leaf in examples))


def differences(examples: Examples, image: Array, target: Array, k: int) -> Array:
    """Return a_i - x `[B, k, n]` for the k nearest examples a_i of class `target`, from the nearest on."""
    query = image.reshape(len(image), -1).astype(jnp.float32)
    places = _nearest(examples, query, target, k)
    return examples.flat.reshape(-1, query.shape[1])[places] - query[:, None]


def _nearest(examples: Examples, query: Array, target: Array, k: int) -> Array:
    """Return the places `[B, k]` of the k nearest examples of class `target`, from the nearest on."""
    block = examples.label.shape[1]

    def compare(best: tuple[Array, Array], inputs: tuple[Array, Examples]):
        first, some = inputs
        # |a - x|² without |x|², which is the same for every a. Full precision: neighbors differ by little.
        distance = some.norm[None] - 2 * jnp.matmul(query, some.flat.T, precision="highest")
        distance = jnp.where(some.label[None] == target[:, None], distance, jnp.inf)
        values = jnp.concatenate([best[0], distance], axis=1)
        places = jnp.broadcast_to(first + jnp.arange(block), distance.shape)
        places = jnp.concatenate([best[1], places], axis=1)
        smallest, order = jax.lax.top_k(-values, k)
        return (-smallest, jnp.take_along_axis(places, order, axis=1)), None

    shape = (len(query), k)
    start = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32)
    firsts = block * jnp.arange(len(examples.label))
    return jax.lax.scan(compare, start, (firsts, examples))[0][1]


def _delta_x(
    k: int, examples: Examples, image: Array, label: Array, target: Array, index: Array | None = None
) -> Array:
    difference = differences(examples, image, target, k)
    squared = jnp.sum(difference**2, axis=2)
    scale = jnp.mean(squared, axis=1, keepdims=True)
    weight = jax.nn.softmax(-squared / jnp.where(scale > 0, scale, 1), axis=1)
    return jnp.einsum("bk,bkn->bn", weight, difference, precision="highest").reshape(image.shape).astype(image.dtype)
