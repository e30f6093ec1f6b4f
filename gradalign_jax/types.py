"""The vocabulary that every kernel shares: batches, classifiers, and the functions they exchange.

Kernels receive functions (`LogitsFn`, `DeltaX`) and arrays, never a config, a model object or a path.
Images are float32 `[B, H, W, C]` (Spheres: `[B, 500]`) in `IMAGE_RANGE`; labels are int32 `[B]`; every
epsilon and step size is in the units of that range (MNIST's usual 0.3 of [0, 1] is 0.6 here).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

IMAGE_RANGE = (-1.0, 1.0)

Array = jax.Array
Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}, as Flax returns them
LogitsFn = Callable[[Array], Array]  # images [B, ...] -> logits [B, K]
DeltaX = Callable[..., Array]  # (image, label, target, index) -> [B, ...], a vector to class `target`
Attack = Callable[..., Array]  # (logits_fn, key, image, label, epsilon[, step_size]) -> images


class ResidualGenerator(NamedTuple):
    """A generator G(x, ¬y, y) of the residual Δ̂x as two pure functions (section 2.3.1).

    init(key) -> variables {"params", "batch_stats"}.
    apply(variables, image, desired, actual, train=False) -> (Δ̂x [B, ...], batch_stats), statistics as in `Classifier`.
    """

    init: Callable[[Array], Variables]
    apply: Callable[..., tuple[Array, Any]]


class Estimate(NamedTuple):
    """A Δx with its source.

    delta_x: (image, label, target, index) -> `[B, ...]`; a `jax.tree_util.Partial` whose leaves are the arrays that it
      computes from (a generator's weights, stored latents), so that programs take them as an argument.
    described: the source, for the run's result.
    index: the examples that it covers, by their place in the data set; None: all.
    """

    delta_x: DeltaX
    described: dict[str, Any]
    index: Any = None


class Batch(NamedTuple):
    """A batch of examples; `index` is each example's place in its data set (it keys cached Δx)."""

    image: Array
    label: Array
    index: Array


class Classifier(NamedTuple):
    """A model as two pure functions.

    init(key) -> variables {"params", "batch_stats"}.
    apply(variables, image, train=False) -> (logits [B, K], batch_stats): in training mode the returned
    statistics are the updated ones, otherwise those that came in. Normalisation of the input belongs to
    the model. Two-class models compute one score s and return `binary_logits(s)`.
    prepare(variables, factors) -> logits_fn: the model in evaluation mode for a search that calls it many times, with
    constants folded and products of factors of type `factors`; None: `apply` serves.
    """

    init: Callable[[Array], Variables]
    apply: Callable[..., tuple[Array, Any]]
    prepare: Callable[[Variables, Any], LogitsFn] | None = None

    def searched(self, variables: Variables, factors: Any) -> LogitsFn:
        """The function that a search calls: `prepare`'s, or `apply` in evaluation mode."""
        if self.prepare is None:
            return lambda image: self.apply(variables, image, train=False)[0]
        return self.prepare(variables, factors)


def binary_logits(score: Array) -> Array:
    """Presents a binary classifier's one output s `[B]` or `[B, 1]` as logits (-s/2, +s/2) `[B, 2]`.

    Their softmax is sigmoid(s), so that every formula for K classes holds for two as it stands.
    """
    half = score.reshape(score.shape[0]) / 2
    return jnp.stack([-half, half], axis=-1)
