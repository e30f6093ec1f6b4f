"""A ResNet's layers before its blocks: normalization, the first convolution, pooling."""

import jax.numpy as jnp
from jax import lax

from gradalign_jax.ops.convolution import conv
from gradalign_jax.types import Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INPUT_MAPPINGS = {"raw": (1.0, 0.0), "unit": (0.5, 0.5)}  # scale and shift before the normalization
STEMS = {"imagenet": (7, 2, 3), "cifar": (3, 1, 1)}  # kernel size, stride, padding


def normalization(input_mapping: str) -> tuple[Array, Array]:
    """Return the scale and shift `[3]` that apply ImageNet's mean and deviation to images in [-1, 1].

    "unit" maps them to [0, 1] first, "raw" does not.
    """
    scale, shift = INPUT_MAPPINGS[input_mapping]
    return scale / jnp.array(IMAGENET_STD), (shift - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)


def convolve_normalized(
    image: Array, kernel: Array, stride: int, padding: int, normalization: tuple[Array, Array]
) -> Array:
    """Return the convolution of images `[B, H, W, 1 or 3]`, scaled and shifted, with a kernel `[kh, kw, 3, O]`.

    `normalization` is the scale and shift `[3]`. Gray images are three equal channels.
    """
    scale, shift = normalization
    if image.shape[-1] == 3:
        return conv(image * scale[None, None, None] + shift[None, None, None], kernel, stride, padding)
    # Three equal channels, scaled and shifted, need a third of the products: the sum of the kernel's channels weighted
    # by the scales reads the image, the sum weighted by the shifts an image of ones, the same for the whole batch.
    ones = jnp.ones((1, *image.shape[1:]), image.dtype)
    by_scale, by_shift = (jnp.einsum("abcd,c->abd", kernel, weights)[:, :, None] for weights in (scale, shift))
    return conv(image, by_scale, stride, padding) + conv(ones, by_shift, stride, padding)


def max_pool(x: Array) -> Array:
    """Return the maximum over 3x3 windows, stride 2, padded by one with -inf, `[B, H, W, C]` to `[B, H/2, W/2, C]`.

    As in PyTorch, the gradient goes to the first maximum in the window's row-major order: in the first row that
    contains it, the first column, so that columns and rows can be reduced one after the other. Written as selections,
    because the gradient of XLA's own pooling is slow on a CPU and cannot be differentiated again.
    """
    return _max_of_three(_max_of_three(x, axis=2), axis=1)


def _max_of_three(x: Array, axis: int) -> Array:
    size = x.shape[axis]
    pads = [(0, 0)] * x.ndim
    pads[axis] = (1, 1)
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    best, *others = (lax.slice_in_dim(x, tap, tap + size - (size - 1) % 2, 2, axis) for tap in range(3))
    for other in others:
        best = jnp.where(other > best, other, best)
    return best
