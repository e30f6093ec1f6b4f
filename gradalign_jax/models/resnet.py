"""ResNet-18 with torchvision's shapes or those of the usual CIFAR variant.

Reference: torchvision.models.resnet18; He et al. 2016.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from gradalign_jax.models import resnet_folded
from gradalign_jax.models.layers import BatchNorm, Linear, torch_uniform
from gradalign_jax.models.stem import INPUT_MAPPINGS, STEMS, convolve_normalized, max_pool, normalization
from gradalign_jax.ops.convolution import conv
from gradalign_jax.ops.window import Pads
from gradalign_jax.types import Array, Classifier, LogitsFn, Variables, binary_logits

WIDTHS = (64, 128, 256, 512)


class Conv(nn.Module):
    """A convolution without bias, with PyTorch's initialization; `padding` as in `ops.convolution.conv`."""

    features: int
    size: int
    stride: int
    padding: int | Pads

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `[B, H, W, I]` to `[B, h, w, features]`."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", torch_uniform, shape)
        return conv(x, kernel, self.stride, self.padding)


class Stem(nn.Module):
    """ImageNet's normalization and the first convolution; gray images are three equal channels."""

    features: int
    size: int
    stride: int
    padding: int
    input_mapping: str

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Map `[B, H, W, 1 or 3]` to `[B, h, w, features]`."""
        kernel = self.param("kernel", torch_uniform, (self.size, self.size, 3, self.features))
        return convolve_normalized(image, kernel, self.stride, self.padding, normalization(self.input_mapping))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, itself a 1x1 convolution where the shape changes."""

    features: int
    stride: int
    norm: Callable

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map `[B, H, W, I]` to `[B, H/stride, W/stride, features]`, both rounded up."""
        y = Conv(self.features, 3, self.stride, 1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train))
        y = Conv(self.features, 3, 1, 1, name="conv2")(y)
        y = self.norm(name="bn2")(y, train)
        if x.shape != y.shape:
            x = Conv(self.features, 1, self.stride, 0, name="downsample_0")(x)
            x = self.norm(name="downsample_1")(x, train)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """The 18-layer residual network; layers have torchvision's names ("layer1_0", "fc", ...)."""

    outputs: int
    stem: str
    input_mapping: str
    frozen_norm: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Array:
        """Map images `[B, H, W, 1 or 3]` to `[B, outputs]`."""
        norm = partial(BatchNorm, self.frozen_norm, self.axis_name)
        x = Stem(WIDTHS[0], *STEMS[self.stem], self.input_mapping, name="conv1")(image)
        x = nn.relu(norm(name="bn1")(x, train))
        if self.stem == "imagenet":
            x = max_pool(x)
        for stage, features in enumerate(WIDTHS):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(features, stride, norm, name=f"layer{stage + 1}_{block}")(x, train)
        return Linear(self.outputs, name="fc")(x.mean((1, 2)))


def create(
    num_classes: int,
    binary: bool = False,
    channels: int = 3,
    stem: str = "imagenet",
    frozen_norm: bool = True,
    input_mapping: str = "unit",
    axis_name: str | None = None,
) -> Classifier:
    """Build a ResNet-18 of images `[B, H, W, channels]`.

    Kernels start from PyTorch's default U(±1/√fan_in): with frozen statistics the activations of torchvision's wider He
    initialization grow with depth, and PGD training from it stayed at chance on MNIST-3/5, where this one learned.

    Args:
      num_classes: K.
      binary: one output s, returned as `binary_logits(s)`; needs num_classes=2.
      channels: 1 (gray, repeated to 3 inside) or 3.
      stem: "imagenet" (7x7, stride 2, max pool) or "cifar" (3x3, stride 1, no pool).
      frozen_norm: batch norm always uses its stored statistics; otherwise, in training, the batch's.
      input_mapping: "unit" maps images to [0, 1] before ImageNet's normalization, "raw" does not.
      axis_name: the mapped axis over which batch statistics are averaged.

    Raises:
      ValueError: if an option has another value than these.
    """
    if binary and num_classes != 2:
        raise ValueError(f"binary=True needs num_classes=2, got {num_classes}")
    given = {"channels": channels, "stem": stem, "input_mapping": input_mapping}
    valid = {"channels": (1, 3), "stem": STEMS, "input_mapping": INPUT_MAPPINGS}
    for name, value in given.items():
        if value not in valid[name]:
            raise ValueError(f"{name}={value!r} is not valid: use {' or '.join(map(repr, valid[name]))}")
    network = ResNet18(1 if binary else num_classes, stem, input_mapping, frozen_norm, axis_name)

    def init(key: Array) -> Variables:
        return jax.jit(partial(network.init, train=False))(key, jnp.zeros((1, 32, 32, channels)))

    def apply(variables: Variables, image: Array, train: bool = False) -> tuple[Array, dict]:
        if image.shape[-1] != channels:
            raise ValueError(f"images {image.shape}: the model needs {channels} channels; set config.model.channels")
        output, state = network.apply(variables, image, train, mutable=["batch_stats"])
        return (binary_logits(output) if binary else output), state["batch_stats"]

    def prepare(variables: Variables, factors: jnp.dtype) -> LogitsFn:
        logits_fn = resnet_folded.logits_fn(variables, channels, stem, input_mapping, factors)
        return (lambda image: binary_logits(logits_fn(image))) if binary else logits_fn

    return Classifier(init, apply, prepare)
