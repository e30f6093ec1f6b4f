"""The conditional GAN of the paper: BigGAN at 32 x 32 with a discriminator of K + 1 classes (A.3; the authors' code).

The generator's variables, by layer, are

    linear                    kernel [latent, 16 width], to pixels of 4 x 4 in the order rows, columns, channels
    block0, block1, block2    norm1, conv1, norm2, conv2, shortcut
    norm, conv                the last norm (scale, bias) and the convolution to images

where each kernel's u is in "spectral", and each norm's mean and var in "batch_stats". Those of the discriminator are
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
from gradalign_jax.ops.resampling import conv_then_halve, double, double_then_conv, halve
from gradalign_jax.types import Array, Variables

SIZE = 32  # pixels of the images' sides
_BOTTOM = 4  # pixels of the sides where the generator starts
_LEVELS = 3  # doublings from there


class Generator(NamedTuple):
    """A conditional generator as two pure functions.

    init(key) -> variables {"params", "batch_stats", "spectral"}.
    apply(variables, z [B, latent_dim], label [B], train=False) -> (image [B, 32, 32, C] in [-1, 1], state), where
    state holds "batch_stats" and "spectral": the updated ones in training, otherwise those that came in.
    """

    init: Callable[[Array], Variables]
    apply: Callable[..., tuple[Array, Variables]]


class Discriminator(NamedTuple):
    """A discriminator of K classes and "fake" (index K) as two pure functions.

    init(key) -> variables {"params", "spectral"}.
    apply(variables, image [B, 32, 32, C], train=False) -> (scores [B, K + 1], features [B, width], state), where
    state holds "spectral": the updated one in training, otherwise what came in.
    """

    init: Callable[[Array], Variables]
    apply: Callable[..., tuple[Array, Array, Variables]]


class ClassBatchNorm(BatchNorm):
    """Batch norm whose weight (1 + gain) and bias belong to the class of each image."""

    num_classes: int = 1

    @nn.compact
    def __call__(self, x: Array, label: Array, train: bool) -> Array:
        """Normalises [B, H, W, C] over all axes but the last; label is int [B]."""
        mean, var = self._statistics(x, train)
        gain, bias = (self.param(name, n02, (self.num_classes, x.shape[-1])) for name in ("gain", "bias"))
        scale = (1 + gain[label]) * lax.rsqrt(var + 1e-5)[None]
        return (x * scale[:, None, None] + (bias[label] - mean[None] * scale)[:, None, None]).astype(x.dtype)


class _GeneratorBlock(nn.Module):
    """Doubles the image; its shortcut is a 1x1 convolution."""

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


def _between(x: Array, factors: jnp.dtype | None) -> Array:
    """What lies between products: float32, or on a GPU or TPU in the type of the products' factors."""
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
        x = _between(x.reshape(-1, _BOTTOM, _BOTTOM, self.width), self.dtype)
        for level in range(_LEVELS):
            x = _GeneratorBlock(norm, conv, name=f"block{level}")(x, label, train)
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="norm")(x, train))
        x = SpectralConv(self.channels, self.dtype, name="conv")(x, train)
        return jnp.tanh(x.astype(z.dtype))


class _DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut is a 1x1 convolution where the image is halved."""

    conv: Callable
    first: bool  # reads images: no activation ahead of the convolutions
    down: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        h = self.conv(name="conv1")(x if self.first else nn.relu(x), train)
        h = nn.relu(h)
        if not self.down:
            return self.conv(name="conv2")(h, train) + x
        h = self.conv(name="conv2", form=conv_then_halve)(h, train)
        # Linear both, the 1x1 convolution and the mean may be taken in either order; after the mean it is cheaper.
        return h + self.conv(size=1, name="shortcut")(halve(x), train)


class _DiscriminatorNetwork(nn.Module):
    num_classes: int
    width: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, image: Array, train: bool) -> tuple[Array, Array]:
        conv, x = partial(SpectralConv, self.width, self.dtype), _between(image, self.dtype)
        for level in range(4):
            x = _DiscriminatorBlock(conv, first=level == 0, down=level < 2, name=f"block{level}")(x, train)
        features = nn.relu(x).astype(image.dtype).sum((1, 2))
        return SpectralLinear(self.num_classes + 1, self.dtype, name="linear")(features, train), features


def _draw(network: nn.Module, key: Array, *inputs: jax.ShapeDtypeStruct) -> Variables:
    """The network's initial variables, one by one: as one program they take longer to compile than training does."""
    return network.lazy_init(key, *inputs, train=False)


def create_generator(
    num_classes: int,
    channels: int,
    width: int = 256,
    latent_dim: int = 128,
    axis_name: str | None = None,
    dtype: jnp.dtype | None = None,
) -> Generator:
    """Returns the generator (4,304,387 parameters for 10 classes and 3 channels).

    axis_name: the mapped axis over which batch statistics are taken together.
    dtype: type of the factors in products, kernels once they are normalised; on a GPU or TPU also of what lies between
      products. Statistics, latents, images and all else stay in float32.
    """
    network = _GeneratorNetwork(num_classes, channels, width, axis_name, dtype)

    def init(key: Array) -> Variables:
        return _draw(
            network, key, jax.ShapeDtypeStruct((1, latent_dim), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
        )

    def apply(variables: Variables, z: Array, label: Array, train: bool = False) -> tuple[Array, Variables]:
        return network.apply(variables, z, label, train, mutable=["batch_stats", "spectral"])

    return Generator(init, apply)


def create_discriminator(
    num_classes: int, channels: int, width: int = 256, dtype: jnp.dtype | None = None
) -> Discriminator:
    """Returns the discriminator (4,207,371 parameters for 10 classes and 3 channels); dtype as in the generator."""
    network = _DiscriminatorNetwork(num_classes, width, dtype)

    def init(key: Array) -> Variables:
        return _draw(network, key, jax.ShapeDtypeStruct((1, SIZE, SIZE, channels), jnp.float32))

    def apply(variables: Variables, image: Array, train: bool = False) -> tuple[Array, Array, Variables]:
        (scores, features), state = network.apply(variables, image, train, mutable=["spectral"])
        return scores, features, state

    return Discriminator(init, apply)


def crop(image: Array, size: int) -> Array:
    """The middle `[B, size, size, C]` of square images: MNIST's 28 pixels of the generator's 32."""
    margin = (image.shape[1] - size) // 2
    return image[:, margin : margin + size, margin : margin + size]


def multi_hinge(scores: Array, label: Array) -> Array:
    """The hinge of Crammer and Singer: the mean of max(0, 1 + max_{j≠t} X_j - X_t), a scalar.

    Args:
      scores: X `[B, K + 1]`; index K stands for "fake".
      label: t, int `[B]`.
    """
    rows = jnp.arange(scores.shape[0])
    wrong = scores.at[rows, label].set(-jnp.inf).max(-1)
    return nn.relu(1 + wrong - scores[rows, label]).mean()
