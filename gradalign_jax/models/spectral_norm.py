"""Layers whose kernel is divided by an estimate of its largest singular value.

Each keeps the estimate's left vector u in the collection "spectral", moves it by one power iteration a forward pass,
and stores what it became in training alone: evaluation starts from the stored u every time.
Reference: Miyato et al. 2018; BigGAN-PyTorch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gradalign_jax.ops.convolution import conv
from gradalign_jax.ops.matmul import product
from gradalign_jax.types import Array

n02 = nn.initializers.normal(0.02)


def _unit(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-8)


def power_iteration(kernel: Array, u: Array) -> tuple[Array, Array]:
    """One power iteration of a kernel `[..., inputs, outputs]` from u `[outputs]`: σ and the new u.

    Both vectors are constants to the derivative, so that dσ/dkernel is their outer product.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    constant = lax.stop_gradient(matrix)
    v = _unit(constant @ u)
    u = _unit(v @ constant)
    return v @ matrix @ u, u


class _Spectral(nn.Module):
    """What both layers share: features, and `dtype`, the type of the products' factors (None: the kernel's own).

    The result has the type of what comes in.
    """

    features: int
    dtype: jnp.dtype | None = None

    def _weights(self, shape: tuple[int, ...], train: bool) -> tuple[Array, Array]:
        """Returns the normalised kernel and the bias, which start from N(0, 0.02²) and U(±1/√fan_in)."""
        kernel = self.param("kernel", n02, (*shape, self.features))
        bound = (kernel.size // self.features) ** -0.5
        bias = self.param("bias", jax.random.uniform, (self.features,), kernel.dtype, -bound, bound)
        u = self.variable("spectral", "u", lambda: jax.random.normal(self.make_rng("params"), (self.features,)))
        sigma, moved = power_iteration(kernel, u.value)
        if train and not self.is_initializing():
            u.value = moved
        return kernel / sigma, bias


class SpectralLinear(_Spectral):
    """A dense layer, spectrally normalised."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [B, fan_in] to [B, features]."""
        kernel, bias = self._weights(x.shape[-1:], train)
        return product(x, kernel.astype(self.dtype or kernel.dtype)) + bias.astype(x.dtype)[None]


def same_size(x: Array, kernel: Array, dtype: jnp.dtype | None = None) -> Array:
    """The convolution of images [B, H, W, I] with an odd kernel that keeps their size, its factors in `dtype`."""
    return conv(x, kernel.astype(dtype or kernel.dtype), padding=kernel.shape[0] // 2)


class SpectralConv(_Spectral):
    """A convolution with a kernel of odd `size`, spectrally normalised.

    form: the map of image, kernel and `dtype`, by default the convolution that keeps the image's size.
    """

    size: int = 3
    form: Callable[[Array, Array, jnp.dtype | None], Array] = same_size

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [B, H, W, I] to [B, H, W, features], or to the form's rows and columns."""
        kernel, bias = self._weights((self.size, self.size, x.shape[-1]), train)
        return self.form(x, kernel, self.dtype) + bias.astype(x.dtype)[None, None, None]
