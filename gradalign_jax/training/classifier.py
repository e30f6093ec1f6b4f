"""The three ways of training a classifier, as one pure step each, and many steps as one program.

baseline: cross-entropy. align: cross-entropy minus λ_α times the alignment (Eq. 9, a double gradient).
pgd: cross-entropy of adversarial images alone (Eq. 17). None but align looks at input gradients of the clean images.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradalign_jax import alignment
from gradalign_jax.ops import precision
from gradalign_jax.types import Array, Attack, Batch, Classifier, DeltaX, Variables

METHODS = ("baseline", "align", "pgd")


class TrainState(NamedTuple):
    """All that training changes. `step` counts finished steps; every key and the data order derive from it."""

    variables: Variables
    optimizer: optax.OptState
    step: Array


def create_state(classifier: Classifier, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """A fresh state: `classifier.init(key)`, the optimiser's zeros, step 0."""
    variables = classifier.init(key)
    return TrainState(variables, optimizer.init(variables["params"]), jnp.zeros((), jnp.int32))


def make_step(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    method: str,
    *,
    delta_x: DeltaX | None = None,
    attack: Attack | None = None,
    attack_precision: str = "float32",
    training_precision: str = "float32",
    mean: Callable[[Any], Any] = lambda tree: tree,
) -> Callable:
    """Builds `step(state, batch, keys, settings) -> (state, metrics)`.

    Args:
      classifier, optimizer: the model's two functions and an optax transformation.
      method: one of METHODS.
      delta_x: for align: (image, label, target, index) -> `[B, ...]`.
      attack: for pgd: as `attacks.pgd.make` builds it. It sees the model in evaluation mode.
      attack_precision: of the attack's products, one of `precision.NAMES`.
      training_precision: of the products of losses and parameter updates, float32 or tf32.
      mean: averages gradients, statistics and metrics over devices; nothing to do on one.

    The step's `keys` hold one key per image; `settings` holds the traced scalars it needs: `weight` (λ_α) for
    align, `epsilon` and `step_size` for pgd. Metrics are batch means: `loss`, `error`, and `alignment` for align.

    Raises:
      ValueError: on an unknown method, or one whose `delta_x` or `attack` is missing.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: use one of {METHODS}")
    if method == "align" and delta_x is None:
        raise ValueError("method 'align' needs a Δx for this data set")
    if method == "pgd" and attack is None:
        raise ValueError("method 'pgd' needs an attack")

    def loss_fn(params, statistics, batch: Batch, settings):
        def apply(image):
            return classifier.apply({"params": params, "batch_stats": statistics}, image, train=True)

        metrics = {}
        if method == "align":
            assert delta_x is not None  # checked above
            logits, cosine, statistics = alignment.aligned_forward(apply, delta_x, *batch)
            metrics["alignment"] = jnp.mean(cosine)
        else:
            logits, statistics = apply(batch.image)
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.label))
        if method == "align":
            loss -= settings["weight"] * metrics["alignment"]
        metrics |= {"loss": loss, "error": jnp.mean(jnp.argmax(logits, -1) != batch.label)}
        return loss, (metrics, statistics)

    def step(state: TrainState, batch: Batch, keys: Array, settings: dict[str, Array]):
        variables = state.variables
        if method == "pgd":
            assert attack is not None  # checked above
            with precision.scope(attack_precision):
                logits_fn = classifier.searched(variables, precision.factors(attack_precision))
                radius = settings["epsilon"], settings["step_size"]
                batch = batch._replace(image=attack(logits_fn, keys, batch.image, batch.label, *radius))
        with precision.scope(training_precision):
            gradients, (metrics, statistics) = jax.grad(loss_fn, has_aux=True)(
                variables["params"], variables["batch_stats"], batch, settings
            )
        gradients, metrics, statistics = mean((gradients, metrics, statistics))
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, variables["params"])
        variables = {"params": optax.apply_updates(variables["params"], updates), "batch_stats": statistics}
        return TrainState(variables, optimizer_state, state.step + 1), metrics

    return step
