"""The three methods of training a classifier, each as one pure step.

baseline: cross-entropy. align: cross-entropy minus λ_α times the alignment (Eq. 9, a double gradient).
pgd: cross-entropy of adversarial images alone (Eq. 17). Only align computes input gradients of the clean images.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradalign_jax import alignment
from gradalign_jax.ops import precision
from gradalign_jax.paper import METHODS
from gradalign_jax.training import all_targets
from gradalign_jax.types import Array, Attack, Batch, Classifier, DeltaX, Step, Variables

TARGETS = ("closest", "all")  # classes whose Δx align rewards


class TrainState(NamedTuple):
    """Everything that training changes; `step` counts finished steps, and keys and data order derive from it."""

    variables: Variables
    optimizer: optax.OptState
    step: Array


class StepInputs(NamedTuple):
    """The inputs of a step besides its state and batch, traced, so that a new value never recompiles.

    weight: λ_α of align.
    delta_x: Δx of align, a `jax.tree_util.Partial` whose leaves are the arrays it computes from.
    epsilon, step_size: of the attack of pgd.
    """

    weight: float | Array | None = None
    delta_x: DeltaX | None = None
    epsilon: float | Array | None = None
    step_size: float | Array | None = None


def create_state(classifier: Classifier, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """Return the initial state: variables from `classifier.init(key)`, a fresh optimizer, step 0."""
    variables = classifier.init(key)
    return TrainState(variables, optimizer.init(variables["params"]), jnp.zeros((), jnp.int32))


def make_step(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    method: str,
    *,
    attack: Attack | None = None,
    attack_precision: str = "float32",
    training_precision: str = "float32",
    targets: str = "closest",
    mean: Callable[[Any], Any] = lambda tree: tree,
) -> Step[TrainState]:
    """Build `step(state, batch, keys, inputs) -> (state, metrics)`.

    `keys` holds one key per image; `inputs` is a `StepInputs`. Metrics are batch means: `loss`, `error`, and
    for align `alignment`, a mean over the targets as well.

    Args:
      classifier: the model.
      optimizer: an optax optimizer.
      method: one of METHODS.
      attack: for pgd, an attack as `attacks.pgd.make` builds it. It sees the model in evaluation mode.
      attack_precision: precision of the products in the attack, one of `precision.NAMES`.
      training_precision: precision of the products in losses and updates, float32 or tf32.
      targets: of align: "closest" rewards the alignment with Δx to c̃ (Eq. 9), "all" the sum of the alignments with Δx
        to every other class (`training.all_targets`).
      mean: averages gradients, statistics and metrics over devices; identity on one device.

    Raises:
      ValueError: if the method or the targets are unknown, or pgd has no attack; from the step, if align has no Δx.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: use one of {METHODS}")
    if method == "pgd" and attack is None:
        raise ValueError("method 'pgd' needs an attack: give attack")
    if targets not in TARGETS:
        raise ValueError(f"unknown targets {targets!r}: use one of {', '.join(TARGETS)}")

    def loss_fn(params, statistics, batch: Batch, inputs: StepInputs):
        def apply(image):
            return classifier.apply({"params": params, "batch_stats": statistics}, image, train=True)

        metrics = {}
        if method == "align":
            assert inputs.delta_x is not None  # checked by the step
            forward = alignment.aligned_forward if targets == "closest" else all_targets.aligned_forward
            logits, cosine, statistics = forward(apply, inputs.delta_x, *batch)
            metrics["alignment"] = jnp.mean(cosine)
        else:
            logits, statistics = apply(batch.image)
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.label))
        if method == "align":
            assert inputs.weight is not None
            rewarded = metrics["alignment"] if targets == "closest" else cosine.shape[0] * metrics["alignment"]
            loss -= inputs.weight * rewarded
        metrics |= {"loss": loss, "error": jnp.mean(jnp.argmax(logits, -1) != batch.label)}
        return loss, (metrics, statistics)

    def step(state: TrainState, batch: Batch, keys: Array, inputs: StepInputs = StepInputs()):  # noqa: B008
        if method == "align" and inputs.delta_x is None:
            raise ValueError("method 'align' needs a Δx: give StepInputs(delta_x=...)")
        variables = state.variables
        if method == "pgd":
            assert attack is not None  # checked above
            assert inputs.epsilon is not None
            assert inputs.step_size is not None
            with precision.scope(attack_precision):
                logits_fn = classifier.searched(variables, precision.factors(attack_precision))
                radius = inputs.epsilon, inputs.step_size
                batch = batch._replace(image=attack(logits_fn, keys, batch.image, batch.label, *radius))
        with precision.scope(training_precision):
            gradients, (metrics, statistics) = jax.grad(loss_fn, has_aux=True)(
                variables["params"], variables["batch_stats"], batch, inputs
            )
        gradients, metrics, statistics = mean((gradients, metrics, statistics))
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, variables["params"])
        variables = {"params": optax.apply_updates(variables["params"], updates), "batch_stats": statistics}
        return TrainState(variables, optimizer_state, state.step + 1), metrics

    return step
