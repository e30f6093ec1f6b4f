"""A ResNet-18 in evaluation mode with its constants prepared, for an attack's many passes through it.

    normalisation        in the stem's kernel, which sees the image and a channel of ones
    batch norm           its scale in the kernel before it, its shift a bias
    kernels              cast, flipped and transposed once (ops/frozen.py)

An attack's loop then holds convolutions, biases, ReLUs and their input gradients. Only images get gradients.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradalign_jax.models.stem import STEMS, convolve_normalised, max_pool, normalisation
from gradalign_jax.ops import frozen, platform, precision
from gradalign_jax.types import Array, LogitsFn, Variables


class Layer(NamedTuple):
    """A convolution and the bias `[C]` that follows it."""

    kernel: frozen.Kernel
    bias: Array


class Block(NamedTuple):
    """Two 3x3 convolutions, of which the first has stride 2 where there is a shortcut, a 1x1 convolution."""

    conv1: Layer
    conv2: Layer
    shortcut: Layer | None


def logits_fn(variables: Variables, channels: int, stem: str, input_mapping: str, factors: jnp.dtype) -> LogitsFn:
    """Return images `[B, H, W, channels]` -> outputs `[B, K]` of a network of models/resnet.py in evaluation mode.

    factors: the type of the convolutions' factors. The image and the outputs are float32. With bfloat16 factors the
      stem takes the image in two parts, because bfloat16 would lose a small perturbation.
    """
    params, stats = variables["params"], variables["batch_stats"]
    first = _fold(params["conv1"]["kernel"], params["bn1"], stats["bn1"])
    see = _stem(*first, channels, stem, input_mapping, factors)
    names = sorted(name for name in params if name.startswith("layer"))
    blocks = [_block(params[name], stats[name], factors) for name in names]
    matrix, bias = params["fc"]["kernel"], params["fc"]["bias"]

    def apply(image: Array) -> Array:
        x = frozen.relu(see(image))
        if stem == "imagenet":
            x = max_pool(x)
        for block in blocks:
            x = _apply_block(block, x)
        return x.astype(jnp.float32).mean((1, 2)) @ matrix + bias[None]

    return apply


def _fold(kernel: Array, norm: dict[str, Array], statistics: dict[str, Array]) -> tuple[Array, Array]:
    """The kernel and the bias that are a convolution and its batch norm in one."""
    scale = norm["scale"] * lax.rsqrt(statistics["var"] + 1e-5)
    return kernel * scale[None, None, None], norm["bias"] - statistics["mean"] * scale


def _block(params: dict, stats: dict, factors: jnp.dtype) -> Block:
    stride = 2 if "downsample_0" in params else 1

    def layer(conv: str, norm: str, stride: int) -> Layer:
        kernel, bias = _fold(params[conv]["kernel"], params[norm], stats[norm])
        return Layer(frozen.kernel(kernel, factors, stride), bias.astype(precision.activations(factors)))

    shortcut = layer("downsample_0", "downsample_1", stride) if stride > 1 else None
    return Block(layer("conv1", "bn1", stride), layer("conv2", "bn2", 1), shortcut)


def _apply_block(block: Block, x: Array) -> Array:
    def convolve(layer: Layer, x: Array, stride: int, padding: int) -> Array:
        return frozen.conv(x, layer.kernel, stride, padding) + layer.bias[None, None, None]

    stride = 2 if block.shortcut else 1
    y = frozen.relu(convolve(block.conv1, x, stride, 1))
    if block.shortcut:
        x = convolve(block.shortcut, x, stride, 0)
    return frozen.relu(convolve(block.conv2, y, 1, 1) + x)


def _stem(kernel: Array, bias: Array, channels: int, stem: str, input_mapping: str, factors: jnp.dtype):
    """Return the stem as a function of images; on a CPU all its products are in float32."""
    _, stride, padding = STEMS[stem]
    dtype = precision.activations(factors)
    if platform.is_cpu():
        return lambda image: convolve_normalised(image, kernel, stride, padding, input_mapping) + bias[None, None, None]
    scale, shift = normalisation(input_mapping)
    seen = kernel * scale[None, None, :, None]
    seen = seen if channels == 3 else seen.sum(2, keepdims=True)
    parts = [seen] * (2 if dtype == jnp.bfloat16 else 1)
    whole = jnp.concatenate([*parts, (kernel * shift[None, None, :, None]).sum(2, keepdims=True)], axis=2)
    # Of the image's channels, for the gradient, and of all that `channels_of` makes of them.
    kernels, bias = [frozen.kernel(each, factors, stride) for each in (seen, whole)], bias.astype(dtype)
    return lambda image: _see(stride, padding, dtype, image, *kernels) + bias[None, None, None]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _see(stride: int, padding: int, dtype: jnp.dtype, image: Array, seen: frozen.Kernel, whole: frozen.Kernel) -> Array:
    return frozen.conv(channels_of(image, dtype), whole, stride, padding)


def channels_of(image: Array, dtype: jnp.dtype) -> Array:
    """The image in `dtype` and a channel of ones; in bfloat16 what is lost of the image follows it as channels."""
    ones = jnp.ones((*image.shape[:-1], 1), image.dtype)
    if dtype != jnp.bfloat16:
        return jnp.concatenate([image, ones], axis=-1)
    rounded = lax.reduce_precision(image, exponent_bits=8, mantissa_bits=7)
    return jnp.concatenate([rounded, image - rounded, ones], axis=-1).astype(dtype)


def _see_backward(stride: int, padding: int, dtype: jnp.dtype, saved, g: Array):
    image, seen = saved
    # Linear in the image: where the gradient is taken does not matter, so nothing is computed forwards.
    pull_back = jax.vjp(lambda x: frozen.conv(x, seen, stride, padding), image.astype(dtype))[1]
    return pull_back(g)[0].astype(image.dtype), None, None


_see.defvjp(
    lambda stride, padding, dtype, image, seen, whole: (
        _see(stride, padding, dtype, image, seen, whole),
        (image, seen),
    ),
    _see_backward,
)
