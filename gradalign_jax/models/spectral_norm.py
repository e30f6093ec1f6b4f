"""Layers whose kernel is divided by an estimate of its largest singular value.

Each stores the estimate's left vector u in the collection "spectral" and applies one power iteration to it per forward
pass. Only training stores the new u: evaluation starts from the stored u every time.
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
    """Return σ and the new u of one power iteration of a kernel `[..., inputs, outputs]` from u `[outputs]`.

    Both vectors are constants to the derivative, so that dσ/dkernel is their outer product.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    constant = lax.stop_gradient(matrix)
    v = _unit(constant @ u)
    u = _unit(v @ constant)
    return v @ matrix @ u, u


class _Spectral(nn.Module):
    """The kernel, bias and power iteration of both layers.

    features: number of outputs.
    dtype: type of the products' factors (None: the kernel's). The result has the input's type.
    """

    features: int
    dtype: jnp.dtype | None = None

    def _weights(self, shape: tuple[int, ...], train: bool) -> tuple[Array, Array]:
        """Return the normalized kernel and the bias, which start from N(0, 0.02²) and U(±1/√fan_in)."""
        kernel = self.param("kernel", n02, (*shape, self.features))
        bound = (kernel.size // self.features) ** -0.5
        bias = self.param("bias", jax.random.uniform, (self.features,), kernel.dtype, -bound, bound)
        u = self.variable("spectral", "u", lambda: jax.random.normal(self.make_rng("params"), (self.features,)))
        sigma, new_u = power_iteration(kernel, u.value)
        if train and not self.is_initializing():
            u.value = new_u
        return kernel / sigma, bias


class SpectralLinear(_Spectral):
    """A dense layer with spectral normalization."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map `[B, fan_in]` to `[B, features]`."""
        kernel, bias = self._weights(x.shape[-1:], train)
        return product(x, kernel.astype(self.dtype or kernel.dtype)) + bias.astype(x.dtype)[None]


def same_size(x: Array, kernel: Array, dtype: jnp.dtype | None = None) -> Array:
    """Return the convolution of images `[B, H, W, I]` with an odd kernel that keeps their size; factors in `dtype`."""
    return conv(x, kernel.astype(dtype or kernel.dtype), padding=kernel.shape[0] // 2)


class SpectralConv(_Spectral):
    """A convolution with spectral normalization.

    size: rows and columns of the kernel, odd.
    form: the function of image, kernel and `dtype`, by default the convolution that keeps the image's size.
    """

    size: int = 3
    form: Callable[[Array, Array, jnp.dtype | None], Array] = same_size

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Map `[B, H, W, I]` to `[B, H, W, features]`, or to the form's rows and columns."""
        kernel, bias = self._weights((self.size, self.size, x.shape[-1]), train)
        return self.form(x, kernel, self.dtype) + bias.astype(x.dtype)[None, None, None]
