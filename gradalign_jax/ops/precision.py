"""The precisions that a product of matrices or a convolution can have.

    float32     products of float32 factors, not shortened (`highest`)
    tf32        float32 arrays; an accelerator shortens the factors: TF32 on a GPU, three bfloat16 passes on a TPU
    bfloat16    bfloat16 factors, sums in float32 inside a product; on an accelerator results and the activations
                between products are bfloat16 too, on a CPU they stay float32, which is faster there
    auto        bfloat16 on an accelerator, float32 on a CPU

What searches may have any of these. What is reported has float32, always.
"""

from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp

from gradalign_jax.ops import platform

NAMES = ("float32", "tf32", "bfloat16", "auto")


def resolve(name: str) -> str:
    """Return "float32", "tf32" or "bfloat16": what `name` means on the platform that is traced for."""
    if platform.is_cpu():
        return "bfloat16" if name == "bfloat16" else "float32"
    return "bfloat16" if name == "auto" else name


def factors(name: str) -> jnp.dtype:
    """Return the type of the products' factors, float32 or bfloat16."""
    return jnp.dtype("bfloat16" if resolve(name) == "bfloat16" else "float32")


def activations(dtype: jnp.dtype) -> jnp.dtype:
    """Return the type of what lies between products whose factors are `dtype`."""
    return jnp.dtype("float32") if platform.is_cpu() else jnp.dtype(dtype)


def scope(name: str) -> AbstractContextManager:
    """Return a context in which products of float32 arrays are traced with this precision.

    With "bfloat16", the float32 products that remain (latents, logits) are shortened as with "tf32".
    """
    shortened = "tensorfloat32" if platform.current() == "tpu" else "default"
    return jax.default_matmul_precision("highest" if resolve(name) == "float32" else shortened)
