"""Pre-activation residual networks: batch norm comes before a convolution, and the sums of the blocks stay linear.

A `Plan` describes a network (preact_resnet.py, wide_resnet.py). Layers have the names of the PyTorch code that it
follows, dots included, so that models/pretrained.py needs no table of names.

In evaluation mode (`prepare`, for an attack's many passes) a block's second batch norm is folded into the convolution
before it. Its first reads the sum that the shortcut also reads, and stays a scale and a shift per channel.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gradalign_jax.models.layers import BatchNorm, Linear, torch_uniform
from gradalign_jax.models.resnet import Conv
from gradalign_jax.models.resnet_folded import Layer, affine, first_layer, fold
from gradalign_jax.models.stem import convolve_normalized
from gradalign_jax.ops import frozen, precision
from gradalign_jax.ops.relu import relu
from gradalign_jax.ops.window import Pads
from gradalign_jax.types import Array, Classifier, LogitsFn, Variables

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": relu, "swish": nn.silu}
EVEN: Pads = ((1, 1), (1, 1))
SAME: Pads = ((0, 1), (0, 1))  # TensorFlow's padding of a 3x3 convolution of stride 2


class Names(NamedTuple):
    """Names of the layers: the stem, those of a block, the batch norm after the last block ("": none), the head."""

    stem: str = "conv1"
    norm1: str = "bn1"
    conv1: str = "conv1"
    norm2: str = "bn2"
    conv2: str = "conv2"
    shortcut: str = "shortcut.0"
    norm: str = "bn"
    head: str = "linear"


class Plan(NamedTuple):
    """A network, but for the number of its classes.

    stem: channels of the first convolution.
    blocks: name, channels and stride of each block.
    names: of the layers.
    mean, std: of the channels of images in [0, 1].
    activation: a key of `ACTIVATIONS`.
    activated_shortcut: a shortcut that is a convolution reads the normalized and activated image.
    strided_pads: of 3x3 convolutions of stride 2.
    """

    stem: int
    blocks: tuple[tuple[str, int, int], ...]
    names: Names
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    activation: str = "relu"
    activated_shortcut: bool = True
    strided_pads: Pads = EVEN

    def pads(self, stride: int) -> Pads:
        """Return the padding of a block's first convolution."""
        return EVEN if stride == 1 else self.strided_pads


def normalization(statistics: dict[str, Array]) -> tuple[Array, Array]:
    """Return the scale and shift `[3]` that normalize images in [-1, 1] by mean and deviation of images in [0, 1]."""
    return 0.5 / statistics["sigma"], (0.5 - statistics["mu"]) / statistics["sigma"]


class Stem(nn.Module):
    """The first convolution, of normalized images."""

    features: int

    @nn.compact
    def __call__(self, image: Array, statistics: dict[str, Array]) -> Array:
        """Map `[B, H, W, 3]` to `[B, H, W, features]`."""
        kernel = self.param("kernel", torch_uniform, (3, 3, 3, self.features))
        return convolve_normalized(image, kernel, 1, 1, normalization(statistics))


class Block(nn.Module):
    """Batch norm, activation, 3x3 convolution, twice, and a shortcut, a 1x1 convolution where the shape changes."""

    plan: Plan
    features: int
    stride: int
    norm: Callable

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map `[B, H, W, I]` to `[B, H/stride, W/stride, features]`, both rounded up."""
        names, activation = self.plan.names, ACTIVATIONS[self.plan.activation]
        activated = activation(self.norm(name=names.norm1)(x, train))
        y = Conv(self.features, 3, self.stride, self.plan.pads(self.stride), name=names.conv1)(activated)
        y = activation(self.norm(name=names.norm2)(y, train))
        y = Conv(self.features, 3, 1, 1, name=names.conv2)(y)
        if x.shape[-1] != self.features:
            x = activated if self.plan.activated_shortcut else x
            x = Conv(self.features, 1, self.stride, 0, name=names.shortcut)(x)
        return x + y


class Network(nn.Module):
    """The network of a plan. Mean and deviation of the images are stored with its statistics: `mu` and `sigma`."""

    plan: Plan
    outputs: int
    frozen_norm: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Array:
        """Map images `[B, H, W, 3]` in [-1, 1] to `[B, outputs]`."""
        plan, names = self.plan, self.plan.names
        norm = partial(BatchNorm, self.frozen_norm, self.axis_name)
        mu = self.variable("batch_stats", "mu", jnp.array, plan.mean, jnp.float32).value
        sigma = self.variable("batch_stats", "sigma", jnp.array, plan.std, jnp.float32).value
        x = Stem(plan.stem, name=names.stem)(image, {"mu": mu, "sigma": sigma})
        for name, features, stride in plan.blocks:
            x = Block(plan, features, stride, norm, name=name)(x, train)
        if names.norm:
            x = ACTIVATIONS[plan.activation](norm(name=names.norm)(x, train))
        return Linear(self.outputs, name=names.head)(x.mean((1, 2)))


def classifier(plan: Plan, num_classes: int, frozen_norm: bool, axis_name: str | None) -> Classifier:
    """Build the classifier of a plan.

    Args:
      plan: the network.
      num_classes: K.
      frozen_norm: batch norm always uses its stored statistics; otherwise, in training, the batch's.
      axis_name: the mapped axis over which batch statistics are averaged.
    """
    network = Network(plan, num_classes, frozen_norm, axis_name)

    def init(key: Array) -> Variables:
        return jax.jit(partial(network.init, train=False))(key, jnp.zeros((1, 32, 32, 3)))

    def apply(variables: Variables, image: Array, train: bool = False) -> tuple[Array, dict]:
        if image.shape[-1] != 3:
            raise ValueError(f"images {image.shape}: the model needs 3 channels; use model resnet with channels=1")
        output, state = network.apply(variables, image, train, mutable=["batch_stats"])
        return output, state["batch_stats"]

    return Classifier(init, apply, partial(_prepare, plan))


class _FoldedBlock(NamedTuple):
    """A block: the first batch norm as scale and shift, and the convolutions, the first with the second batch norm."""

    norm1: tuple[Array, Array]
    conv1: Layer
    conv2: frozen.Kernel
    shortcut: frozen.Kernel | None


def _prepare(plan: Plan, variables: Variables, factors: jnp.dtype) -> LogitsFn:
    params, stats, names = variables["params"], variables["batch_stats"], plan.names
    dtype, activation = precision.activations(factors), ACTIVATIONS[plan.activation]
    first = params[names.stem]["kernel"]
    see = first_layer(first, jnp.zeros(first.shape[-1:]), 1, 1, normalization(stats), 3, factors)
    blocks = [_fold(plan, params[name], stats[name], stride, factors) for name, _, stride in plan.blocks]
    norm = affine(params[names.norm], stats[names.norm]) if names.norm else None
    matrix, bias = params[names.head]["kernel"], params[names.head]["bias"]

    def activated(x: Array, norm: tuple[Array, Array]) -> Array:
        scale, shift = (each.astype(dtype)[None, None, None] for each in norm)
        return activation(x * scale + shift)

    def apply_block(x: Array, block: _FoldedBlock, stride: int) -> Array:
        seen = activated(x, block.norm1)
        y = frozen.conv(seen, block.conv1.kernel, stride, plan.pads(stride)) + block.conv1.bias[None, None, None]
        y = frozen.conv(activation(y), block.conv2, 1, 1)
        if block.shortcut:
            x = frozen.conv(seen if plan.activated_shortcut else x, block.shortcut, stride, 0)
        return x + y

    def logits_fn(image: Array) -> Array:
        x = see(image)
        for block, (_, _, stride) in zip(blocks, plan.blocks, strict=True):
            x = apply_block(x, block, stride)
        x = activated(x, norm) if norm else x
        return x.astype(jnp.float32).mean((1, 2)) @ matrix + bias[None]

    return logits_fn


def _fold(plan: Plan, params: dict, stats: dict, stride: int, factors: jnp.dtype) -> _FoldedBlock:
    names = plan.names
    kernel, bias = fold(params[names.conv1]["kernel"], params[names.norm2], stats[names.norm2])
    conv1 = Layer(frozen.kernel(kernel, factors, stride), bias.astype(precision.activations(factors)))
    conv2 = frozen.kernel(params[names.conv2]["kernel"], factors)
    shortcut = params.get(names.shortcut)
    return _FoldedBlock(
        affine(params[names.norm1], stats[names.norm1]),
        conv1,
        conv2,
        shortcut and frozen.kernel(shortcut["kernel"], factors, stride),
    )
