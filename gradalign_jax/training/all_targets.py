"""The alignment with Δx to every other class, which `align.targets=all` rewards in place of the closest class's alone.

The penalty is the sum over the K - 1 other classes, after Ganz, Kawar and Elad (2023), whose loss sums 1 - cos over all
classes; with equal λ_α it is thus up to K - 1 times that of the closest class. Theirs takes the gradient of each logit,
the true class's included; here it is that of logit_k - logit_y, as in Eq. 9, and with two classes the two penalties
are the same.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradalign_jax.alignment import cosine_similarity
from gradalign_jax.ops import platform
from gradalign_jax.types import Array, DeltaX

_AT_ONCE = 16  # with more other classes, they take turns: memory would grow with K


def aligned_forward(
    logits_fn: Callable[[Array], tuple[Array, Any]],
    delta_x: DeltaX,
    image: Array,
    label: Array,
    index: Array | None = None,
) -> tuple[Array, Array, Any]:
    """Run one forward pass with the alignments to all other classes, differentiable in the parameters.

    It takes K - 1 backward passes, as one vectorized pass on a GPU or TPU. The vectors Δx are constants to the
    derivative, and come from one call of `delta_x` for (K - 1) B images.

    Args:
      logits_fn: image -> (logits `[B, K]`, auxiliary output), in training mode.
      delta_x, image, label, index: as in `alignment.measure`.

    Returns:
      logits `[B, K]`, cosines `[K - 1, B]` = sim(Δx to k, ∇(logit_k - logit_y)) for k = y + 1, y + 2, ... modulo K, and
      the auxiliary output of `logits_fn`.
    """
    logits, pull_back, auxiliary = jax.vjp(logits_fn, image, has_aux=True)
    classes = logits.shape[-1]
    target = (label[None] + jnp.arange(1, classes, dtype=label.dtype)[:, None]) % classes

    def repeated(rows: Array) -> Array:
        return jnp.tile(rows, (classes - 1,) + (1,) * (rows.ndim - 1))

    place = None if index is None else repeated(index)
    vector = jax.lax.stop_gradient(delta_x(repeated(image), repeated(label), target.reshape(-1), place))
    vector = vector.reshape(classes - 1, *image.shape)
    own = jax.nn.one_hot(label, classes, dtype=logits.dtype)

    def towards(pair: tuple[Array, Array]) -> Array:
        (gradient,) = pull_back(jax.nn.one_hot(pair[0], classes, dtype=logits.dtype) - own)
        return cosine_similarity(pair[1], gradient)

    if classes - 1 > _AT_ONCE:
        cosine = jax.lax.map(jax.checkpoint(towards), (target, vector))
    elif platform.is_cpu():  # unrolled, as in alignment.py
        cosine = jnp.stack([towards(pair) for pair in zip(target, vector, strict=True)])
    else:
        cosine = jax.vmap(towards)((target, vector))
    return logits, cosine, auxiliary
