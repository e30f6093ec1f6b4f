"""The gradient of the difference of two logits at the image itself (Eq. 6 of the paper).

    ∇ℓ(x),    ℓ = logit_target - logit_label

Cost: one forward and one backward pass.
"""

import jax

from gradalign_jax.types import Array, Gradient, LogitsFn


def make() -> Gradient:
    """Build `gradient(logits_fn, key, image, label, target) -> [B, ...]`; the key is not used."""

    def gradient(logits_fn: LogitsFn, key: Array | None, image: Array, label: Array, target: Array) -> Array:
        logits, pull_back = jax.vjp(logits_fn, image)
        target, label = (jax.nn.one_hot(k, logits.shape[-1], dtype=logits.dtype) for k in (target, label))
        return pull_back(target - label)[0]

    return gradient
