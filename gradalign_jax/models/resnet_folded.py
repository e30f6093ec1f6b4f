"""A ResNet-18 in evaluation mode with its constants prepared, for an attack's many passes through it.

    normalization        in the stem's kernel, which reads the image and a channel of ones
    batch norm           its scale in the kernel before it, its shift a bias
    kernels              cast, flipped and transposed once (ops/frozen.py)

An attack's loop then contains convolutions, biases, ReLUs and their input gradients. Only images get gradients.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradalign_jax.models.stem import STEMS, convolve_normalized, max_pool, normalization
from gradalign_jax.ops import frozen, platform, precision
from gradalign_jax.ops.relu import relu
from gradalign_jax.types import Array, LogitsFn, Variables


class Layer(NamedTuple):
    """A convolution and the bias `[C]` that follows it."""

    kernel: frozen.Kernel
    bias: Array


class Block(NamedTuple):
    """Two 3x3 convolutions; a block of stride 2 has a 1x1 convolution as its shortcut."""

    conv1: Layer
    conv2: Layer
    shortcut: Layer | None


def logits_fn(variables: Variables, channels: int, stem: str, input_mapping: str, factors: jnp.dtype) -> LogitsFn:
    """Return images `[B, H, W, channels]` -> outputs `[B, K]` of a network of models/resnet.py in evaluation mode.

    Images and outputs are float32.

    Args:
      variables: of `resnet.create`'s classifier.
      channels: as in `resnet.create`.
      stem: as in `resnet.create`.
      input_mapping: as in `resnet.create`.
      factors: type of the convolutions' factors. With bfloat16 factors the stem reads the image in two parts, because
        bfloat16 would lose a small perturbation.
    """
    params, stats = variables["params"], variables["batch_stats"]
    first = fold(params["conv1"]["kernel"], params["bn1"], stats["bn1"])
    _, stride, padding = STEMS[stem]
    see = first_layer(*first, stride, padding, normalization(input_mapping), channels, factors)
    names = sorted(name for name in params if name.startswith("layer"))
    blocks = [_block(params[name], stats[name], factors) for name in names]
    matrix, bias = params["fc"]["kernel"], params["fc"]["bias"]

    def apply(image: Array) -> Array:
        x = relu(see(image))
        if stem == "imagenet":
            x = max_pool(x)
        for block in blocks:
            x = _apply_block(block, x)
        return x.astype(jnp.float32).mean((1, 2)) @ matrix + bias[None]

    return apply


def affine(norm: dict[str, Array], statistics: dict[str, Array]) -> tuple[Array, Array]:
    """Return the scale and shift `[C]` that a batch norm is in evaluation mode."""
    scale = norm["scale"] * lax.rsqrt(statistics["var"] + 1e-5)
    return scale, norm["bias"] - statistics["mean"] * scale


def fold(kernel: Array, norm: dict[str, Array], statistics: dict[str, Array]) -> tuple[Array, Array]:
    """Return kernel and bias of a convolution and its batch norm as one convolution."""
    scale, shift = affine(norm, statistics)
    return kernel * scale[None, None, None], shift


def _block(params: dict, stats: dict, factors: jnp.dtype) -> Block:
    stride = 2 if "downsample_0" in params else 1

    def layer(conv: str, norm: str, stride: int) -> Layer:
        kernel, bias = fold(params[conv]["kernel"], params[norm], stats[norm])
        return Layer(frozen.kernel(kernel, factors, stride), bias.astype(precision.activations(factors)))

    shortcut = layer("downsample_0", "downsample_1", stride) if stride > 1 else None
    return Block(layer("conv1", "bn1", stride), layer("conv2", "bn2", 1), shortcut)


def _apply_block(block: Block, x: Array) -> Array:
    def convolve(layer: Layer, x: Array, stride: int, padding: int) -> Array:
        return frozen.conv(x, layer.kernel, stride, padding) + layer.bias[None, None, None]

    stride = 2 if block.shortcut else 1
    y = relu(convolve(block.conv1, x, stride, 1))
    if block.shortcut:
        x = convolve(block.shortcut, x, stride, 0)
    return relu(convolve(block.conv2, y, 1, 1) + x)


def first_layer(
    kernel: Array,
    bias: Array,
    stride: int,
    padding: int,
    normalization: tuple[Array, Array],
    channels: int,
    factors: jnp.dtype,
) -> Callable[[Array], Array]:
    """Return the first convolution of normalized images as a function of images `[B, H, W, channels]`.

    `normalization` is the scale and shift `[3]` of the images. On a CPU all products are in float32.
    """
    dtype = precision.activations(factors)
    if platform.is_cpu():
        bias = bias[None, None, None]
        return lambda image: convolve_normalized(image, kernel, stride, padding, normalization) + bias
    scale, shift = normalization
    seen = kernel * scale[None, None, :, None]
    seen = seen if channels == 3 else seen.sum(2, keepdims=True)
    parts = [seen] * (2 if dtype == jnp.bfloat16 else 1)
    whole = jnp.concatenate([*parts, (kernel * shift[None, None, :, None]).sum(2, keepdims=True)], axis=2)
    # The kernel of the image's channels, for the gradient, and the kernel of all channels of `channels_of`.
    kernels, bias = [frozen.kernel(each, factors, stride) for each in (seen, whole)], bias.astype(dtype)
    return lambda image: _see(stride, padding, dtype, image, *kernels) + bias[None, None, None]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _see(stride: int, padding: int, dtype: jnp.dtype, image: Array, seen: frozen.Kernel, whole: frozen.Kernel) -> Array:
    return frozen.conv(channels_of(image, dtype), whole, stride, padding)


def channels_of(image: Array, dtype: jnp.dtype) -> Array:
    """Return the image in `dtype` and a channel of ones; in bfloat16 the rounding error of the image lies between."""
    ones = jnp.ones((*image.shape[:-1], 1), image.dtype)
    if dtype != jnp.bfloat16:
        return jnp.concatenate([image, ones], axis=-1)
    rounded = lax.reduce_precision(image, exponent_bits=8, mantissa_bits=7)
    return jnp.concatenate([rounded, image - rounded, ones], axis=-1).astype(dtype)


def _see_backward(stride: int, padding: int, dtype: jnp.dtype, saved, g: Array):
    image, seen = saved
    # The map is linear in the image, so that its gradient needs no forward pass.
    pull_back = jax.vjp(lambda x: frozen.conv(x, seen, stride, padding), image.astype(dtype))[1]
    return pull_back(g)[0].astype(image.dtype), None, None


_see.defvjp(
    lambda stride, padding, dtype, image, seen, whole: (
        _see(stride, padding, dtype, image, seen, whole),
        (image, seen),
    ),
    _see_backward,
)
