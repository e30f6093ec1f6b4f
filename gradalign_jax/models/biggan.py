"""The conditional GAN of the paper: BigGAN at 32 x 32 with a discriminator of K + 1 classes (A.3; the authors' code).

The generator's variables, by layer, are

    linear                    kernel `[latent, 16 width]`, whose result is `[4, 4, width]` in row-major order
    block0, block1, block2    norm1, conv1, norm2, conv2, shortcut
    norm, conv                the last norm (scale, bias) and the convolution to images

where each kernel's u is in "spectral", and each norm's mean and var in "batch_stats". The discriminator's variables are
block0 ... block3 (conv1, conv2, shortcut) and linear.
Reference: Brock et al. 2019; Kavalerov et al. 2021; BigGAN-PyTorch.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gradalign_jax.models.layers import BatchNorm
from gradalign_jax.models.spectral_norm import SpectralConv, SpectralLinear, n02
from gradalign_jax.ops import precision
from gradalign_jax.ops.relu import relu
from gradalign_jax.ops.resampling import conv_then_halve, double, double_then_conv, halve
from gradalign_jax.types import Array, Variables

SIZE = 32  # rows and columns of the images
_BOTTOM = 4  # rows and columns of the generator's first layer
_LEVELS = 3  # doublings after it


class Generator(NamedTuple):
    """A conditional generator as two pure functions.

    init(key) -> variables {"params", "batch_stats", "spectral"}.
    apply(variables, z `[B, latent_dim]`, label `[B]`, train=False) -> (image `[B, 32, 32, C]` in [-1, 1], state), where
    state holds "batch_stats" and "spectral", updated in training and unchanged otherwise.
    """

    init: Callable[[Array], Variables]
    apply: Callable[..., tuple[Array, Variables]]


class Discriminator(NamedTuple):
    """A discriminator of K classes and "fake" (index K) as two pure functions.

    init(key) -> variables {"params", "spectral"}.
    apply(variables, image `[B, 32, 32, C]`, train=False) -> (scores `[B, K + 1]`, features `[B, width]`, state), where
    state holds "spectral", updated in training and unchanged otherwise.
    """

    init: Callable[[Array], Variables]
    apply: Callable[..., tuple[Array, Array, Variables]]


class ClassBatchNorm(BatchNorm):
    """Batch norm with a weight (1 + gain) and a bias for each class."""

    num_classes: int = 1

    @nn.compact
    def __call__(self, x: Array, label: Array, train: bool) -> Array:
        """Normalize `[B, H, W, C]` over all axes but the last; label is int `[B]`."""
        mean, var = self._statistics(x, train)
        gain, bias = (self.param(name, n02, (self.num_classes, x.shape[-1])) for name in ("gain", "bias"))
        scale = (1 + gain[label]) * lax.rsqrt(var + 1e-5)[None]
        return (x * scale[:, None, None] + (bias[label] - mean[None] * scale)[:, None, None]).astype(x.dtype)


class _GeneratorBlock(nn.Module):
    """A block that doubles the image; its shortcut is a 1x1 convolution."""

    norm: Callable
    conv: Callable

    @nn.compact
    def __call__(self, x: Array, label: Array, train: bool) -> Array:
        h = nn.relu(self.norm(name="norm1")(x, label, train))
        h = self.conv(name="conv1", form=double_then_conv)(h, train)
        h = nn.relu(self.norm(name="norm2")(h, label, train))
        h = self.conv(name="conv2")(h, train)
        # A 1x1 convolution of equal pixels gives equal pixels: before the doubling it is a quarter of the work.
        return h + double(self.conv(size=1, name="shortcut")(x, train))


def _as_activations(x: Array, factors: jnp.dtype | None) -> Array:
    """Cast x to the type of activations: float32, or on a GPU or TPU the type of the products' factors."""
    return x if factors in (None, jnp.float32) else x.astype(precision.activations(factors))


class _GeneratorNetwork(nn.Module):
    num_classes: int
    channels: int
    width: int
    axis_name: str | None
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, z: Array, label: Array, train: bool) -> Array:
        norm = partial(ClassBatchNorm, axis_name=self.axis_name, num_classes=self.num_classes)
        conv = partial(SpectralConv, self.width, self.dtype)
        x = SpectralLinear(_BOTTOM**2 * self.width, self.dtype, name="linear")(z, train)
        x = _as_activations(x.reshape(-1, _BOTTOM, _BOTTOM, self.width), self.dtype)
        for level in range(_LEVELS):
            x = _GeneratorBlock(norm, conv, name=f"block{level}")(x, label, train)
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="norm")(x, train))
        x = SpectralConv(self.channels, self.dtype, name="conv")(x, train)
        return jnp.tanh(x.astype(z.dtype))


class _DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut is a 1x1 convolution where the image is halved."""

    conv: Callable
    first: bool  # reads images: no ReLU before the convolutions
    down: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        h = self.conv(name="conv1")(x if self.first else relu(x), train)
        h = relu(h)
        if not self.down:
            return self.conv(name="conv2")(h, train) + x
        h = self.conv(name="conv2", form=conv_then_halve)(h, train)
        # The 1x1 convolution and the mean are linear and commute; after the mean the convolution is cheaper.
        return h + self.conv(size=1, name="shortcut")(halve(x), train)


class _DiscriminatorNetwork(nn.Module):
    num_classes: int
    width: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, image: Array, train: bool) -> tuple[Array, Array]:
        conv, x = partial(SpectralConv, self.width, self.dtype), _as_activations(image, self.dtype)
        for level in range(4):
            x = _DiscriminatorBlock(conv, first=level == 0, down=level < 2, name=f"block{level}")(x, train)
        features = relu(x).astype(image.dtype).sum((1, 2))
        return SpectralLinear(self.num_classes + 1, self.dtype, name="linear")(features, train), features


def _init(network: nn.Module, key: Array, *inputs: jax.ShapeDtypeStruct) -> Variables:
    """Draw the network's initial variables one by one: one program for all takes longer to compile than training."""
    return network.lazy_init(key, *inputs, train=False)


def create_generator(
    num_classes: int,
    channels: int,
    width: int = 256,
    latent_dim: int = 128,
    axis_name: str | None = None,
    dtype: jnp.dtype | None = None,
) -> Generator:
    """Build the generator (4,304,387 parameters for 10 classes and 3 channels).

    Args:
      num_classes: K.
      channels: of the images.
      width: channels of every layer but the last.
      latent_dim: size of z.
      axis_name: the mapped axis over which batch statistics are averaged.
      dtype: type of the products' factors (kernels are cast after their normalization); on a GPU or TPU also of the
        activations between products. Everything else stays in float32.
    """
    network = _GeneratorNetwork(num_classes, channels, width, axis_name, dtype)

    def init(key: Array) -> Variables:
        return _init(
            network, key, jax.ShapeDtypeStruct((1, latent_dim), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
        )

    def apply(variables: Variables, z: Array, label: Array, train: bool = False) -> tuple[Array, Variables]:
        return network.apply(variables, z, label, train, mutable=["batch_stats", "spectral"])

    return Generator(init, apply)


def create_discriminator(
    num_classes: int, channels: int, width: int = 256, dtype: jnp.dtype | None = None
) -> Discriminator:
    """Build the discriminator (4,207,371 parameters for 10 classes and 3 channels).

    Args:
      num_classes: K; the score of index K stands for "fake".
      channels: of the images.
      width: channels of every layer, number of features.
      dtype: as in `create_generator`.
    """
    network = _DiscriminatorNetwork(num_classes, width, dtype)

    def init(key: Array) -> Variables:
        return _init(network, key, jax.ShapeDtypeStruct((1, SIZE, SIZE, channels), jnp.float32))

    def apply(variables: Variables, image: Array, train: bool = False) -> tuple[Array, Array, Variables]:
        (scores, features), state = network.apply(variables, image, train, mutable=["spectral"])
        return scores, features, state

    return Discriminator(init, apply)


def crop(image: Array, size: int) -> Array:
    """Return the center `[B, size, size, C]` of square images, such as MNIST's 28 rows of the generator's 32."""
    margin = (image.shape[1] - size) // 2
    return image[:, margin : margin + size, margin : margin + size]


def multi_hinge(scores: Array, label: Array) -> Array:
    """Return the hinge of Crammer and Singer: the mean of max(0, 1 + max_{j≠t} X_j - X_t), a scalar.

    Args:
      scores: X `[B, K + 1]`; index K stands for "fake".
      label: t, int `[B]`.
    """
    rows = jnp.arange(scores.shape[0])
    wrong = scores.at[rows, label].set(-jnp.inf).max(-1)
    return nn.relu(1 + wrong - scores[rows, label]).mean()
