"""The dense layer with PyTorch's defaults, and the matrix product it is made of."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from gradalign_jax.types import Array


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Array, matrix: Array, turned: bool = False) -> Array:
    """x `[..., n]` @ matrix `[n, m]` in the matrix's precision, summed and returned in that of x; so are its gradients.

    With sums in bfloat16 XLA would not use the bfloat16 tiles (AMX) that some CPUs have.
    turned: multiply by the matrix laid out as `[m, n]`. On a CPU that pays where one float32 matrix is used often, as
      the turning moves out of an attack's loop; a bfloat16 one is left as it is: turned, XLA would make it float32.
    """
    x_cast = x.astype(matrix.dtype)
    if not turned or matrix.dtype == jnp.bfloat16:
        return jnp.matmul(x_cast, matrix, preferred_element_type=x.dtype)
    # Without the barrier the turning would be fused into the product again.
    rows = jax.lax.optimization_barrier(matrix.T)
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x_cast, rows, contract, preferred_element_type=x.dtype)


def _backward(turned: bool, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, matrix = saved
    rows, columns = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return product(g, matrix.T), (rows.T @ columns).astype(matrix.dtype)


product.defvjp(lambda x, matrix, turned: (product(x, matrix, turned), (x, matrix)), _backward)


def torch_uniform(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Draws a kernel [..., fan_in, fan_out] from U(±1/√fan_in), PyTorch's default for linear and conv layers.

    fan_in is the product of all axes but the last. Reference: torch.nn.Linear.reset_parameters.
    """
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nn.Module):
    """A dense layer with PyTorch's default initialisation of kernel and bias: U(±1/√fan_in).

    The product is taken in the kernel's precision and summed in the input's.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        """Maps [B, fan_in] to [B, features]; weights that are not being trained are laid out for many products."""
        bound = x.shape[-1] ** -0.5
        kernel = self.param("kernel", torch_uniform, (x.shape[-1], self.features))
        bias = self.param("bias", jax.random.uniform, (self.features,), x.dtype, -bound, bound)
        return product(x, kernel, not train and jax.default_backend() == "cpu") + bias
