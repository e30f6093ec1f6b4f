"""The precisions of matrix products and convolutions.

    float32     float32 factors at full precision (JAX's "highest")
    tf32        float32 arrays whose factors an accelerator rounds: to TF32 on a GPU, three bfloat16 passes on a TPU
    bfloat16    bfloat16 factors, with float32 sums inside a product; on an accelerator results and the activations
                between products are bfloat16 too, on a CPU they stay float32, which is faster there
    auto        bfloat16 on an accelerator, float32 on a CPU

Searches may use any of them. Reported numbers are always computed in float32.
"""

from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp

from gradalign_jax.ops import platform

NAMES = ("float32", "tf32", "bfloat16", "auto")


def resolve(name: str) -> str:
    """Return "float32", "tf32" or "bfloat16", the meaning of `name` on the platform that is traced for."""
    if platform.is_cpu():
        return "bfloat16" if name == "bfloat16" else "float32"
    return "bfloat16" if name == "auto" else name


def factors(name: str) -> jnp.dtype:
    """Return the type of the products' factors, float32 or bfloat16."""
    return jnp.dtype("bfloat16" if resolve(name) == "bfloat16" else "float32")


def activations(dtype: jnp.dtype) -> jnp.dtype:
    """Return the type of the activations between products whose factors are `dtype`."""
    return jnp.dtype("float32") if platform.is_cpu() else jnp.dtype(dtype)


def scope(name: str) -> AbstractContextManager:
    """Return a context in which products of float32 arrays are traced with this precision.

    With "bfloat16", the remaining float32 products (latents, logits) have the precision of "tf32".
    """
    rounded = "tensorfloat32" if platform.current() == "tpu" else "default"
    return jax.default_matmul_precision("highest" if resolve(name) == "float32" else rounded)
