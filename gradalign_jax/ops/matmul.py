"""The matrix product of dense layers."""

from functools import partial

import jax
import jax.numpy as jnp

from gradalign_jax.ops import platform
from gradalign_jax.types import Array


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Array, matrix: Array, transposed: bool = False) -> Array:
    """Return x `[..., n]` @ matrix `[n, m]`, with factors in the matrix's type; result and gradients have x's type.

    With bfloat16 results XLA would not use the bfloat16 tiles (AMX) that some CPUs have.

    Args:
      x: the left factor.
      matrix: the right factor.
      transposed: multiply by the matrix stored as `[m, n]`. On a CPU that pays where one float32 matrix is used often,
        because its transposition moves out of an attack's loop. It does not change a bfloat16 matrix, because XLA
        would multiply by the transpose in float32.
    """
    x_cast = x.astype(matrix.dtype)
    if not transposed or matrix.dtype == jnp.bfloat16:
        return jnp.matmul(x_cast, matrix, preferred_element_type=x.dtype)
    # Without the barrier XLA would fuse the transposition into the product again.
    rows = jax.lax.optimization_barrier(matrix.T)
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x_cast, rows, contract, preferred_element_type=x.dtype)


def _backward(transposed: bool, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, matrix = saved
    rows, columns = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    if not platform.is_cpu():
        rows, columns = rows.astype(matrix.dtype), columns.astype(matrix.dtype)
    return product(g, matrix.T), (rows.T @ columns).astype(matrix.dtype)


product.defvjp(lambda x, matrix, transposed: (product(x, matrix, transposed), (x, matrix)), _backward)
