"""The vocabulary of the kernels: batches, classifiers, and the functions they exchange.

Kernels receive functions (`LogitsFn`, `DeltaX`, `Gradient`, `Attack`) and arrays, never a config, a model object or a
path. Any callable with the positional arguments of a protocol below will do, a lambda included; nothing is subclassed.
Images are float32 `[B, H, W, C]` (Spheres: `[B, 500]`) in `IMAGE_RANGE`; labels are int32 `[B]`; every ε and step size
is in the units of that range (MNIST's usual 0.3 of [0, 1] is 0.6 here).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp

IMAGE_RANGE = (-1.0, 1.0)

Array = jax.Array
Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}, as Flax returns them
State = TypeVar("State")


class LogitsFn(Protocol):
    """A classifier with its weights."""

    def __call__(self, image: Array, /) -> Array:
        """Return logits `[B, K]` of images `[B, ...]`, each image's from it alone (evaluation mode)."""


class DeltaX(Protocol):
    """Δx: a vector from each image to a class."""

    def __call__(self, image: Array, label: Array, target: Array, index: Array | None, /) -> Array:
        """Return `[B, ...]`, the vector from each image to class `target`, in the shape and units of the images.

        Args:
          image: `[B, ...]`.
          label: int `[B]`, the true classes.
          target: int `[B]`, the classes to move to.
          index: int `[B]`, each image's place in its data set, for a Δx that is stored; None where it has none.
        """


class Gradient(Protocol):
    """A gradient of the difference of two logits, as each `make` of gradalign_jax/gradients builds it."""

    def __call__(self, logits_fn: LogitsFn, key: Array | None, image: Array, label: Array, target: Array, /) -> Array:
        """Return `[B, ...]`, the direction in which logit_target - logit_label grows.

        Args:
          logits_fn: the classifier.
          key: one random key, or one per image `[B]`; None where no randomness is needed.
          image: `[B, ...]`.
          label: int `[B]`, the true classes.
          target: int `[B]`, the classes to move to.
        """


class Attack(Protocol):
    """An attack that takes gradient steps, as `attacks.pgd.make` builds it."""

    def __call__(
        self,
        logits_fn: LogitsFn,
        key: Array,
        image: Array,
        label: Array,
        epsilon: float | Array,
        step_size: float | Array,
        /,
    ) -> Array:
        """Return attacked images `[B, ...]` within ε of `image`.

        Args:
          logits_fn: the classifier that is attacked.
          key: one random key, or one per image `[B]`.
          image: `[B, ...]`.
          label: int `[B]`, the classes to move away from.
          epsilon, step_size: a scalar or one per image `[B]`, traced, in the units of the images.
        """


class BlackBoxAttack(Protocol):
    """An attack that uses only logits and takes no step size, as `attacks.square.make` builds it."""

    def __call__(self, logits_fn: LogitsFn, key: Array, image: Array, label: Array, epsilon: float | Array, /) -> Array:
        """Return attacked images `[B, ...]`; the arguments are those of `Attack`."""


class Batch(NamedTuple):
    """A batch of examples; `index` is each example's place in its data set (the key of a cached Δx)."""

    image: Array
    label: Array
    index: Array  # type: ignore[assignment]  # hides tuple.index


class Step(Protocol[State]):
    """A training step, as each `make_step` builds it: a pure function of arrays, on one device's share of a batch."""

    def __call__(self, state: State, batch: Batch, keys: Array, inputs: Any, /) -> tuple[State, dict[str, Array]]:
        """Return the state after the step, and its metrics as scalars.

        Args:
          state: everything that training changes.
          batch: this device's examples.
          keys: one random key per example `[B]`.
          inputs: everything else the step reads, traced: for a classifier, `training.classifier.StepInputs`.
        """


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
    index: ascending places in the data set of the examples that it covers; None: all.
    covered: which classes it covers of each of those examples, bool `[n, K]`; None: all.
    """

    delta_x: DeltaX
    described: dict[str, Any]
    index: Any = None
    covered: Any = None


class Classifier(NamedTuple):
    """A model as two pure functions.

    init(key) -> variables {"params", "batch_stats"}.
    apply(variables, image, train=False) -> (logits `[B, K]`, batch_stats): the statistics are updated in training mode,
      unchanged otherwise. The model normalizes its own input. A model of two classes computes one score s and
      returns `binary_logits(s)`.
    prepare(variables, factors) -> logits_fn: the model in evaluation mode for an attack that calls it many times, with
      constants folded and products of factors of dtype `factors`; None: attacks use `apply`.
    """

    init: Callable[[Array], Variables]
    apply: Callable[..., tuple[Array, Any]]
    prepare: Callable[[Variables, Any], LogitsFn] | None = None

    def searched(self, variables: Variables, factors: Any) -> LogitsFn:
        """Return the function that an attack calls: that of `prepare`, or `apply` in evaluation mode."""
        if self.prepare is None:
            return lambda image: self.apply(variables, image, train=False)[0]
        return self.prepare(variables, factors)


def binary_logits(score: Array) -> Array:
    """Return the one output s `[B]` or `[B, 1]` of a binary classifier as logits (-s/2, +s/2) `[B, 2]`.

    Their softmax is sigmoid(s), so every formula for K classes also holds for two.
    """
    half = score.reshape(score.shape[0]) / 2
    return jnp.stack([-half, half], axis=-1)


def predicted(logits: Array) -> Array:
    """Return the class of the largest logit `[B]`, the first of equal ones; -1, which is no class, where one is NaN.

    Evaluation and validation count errors by this rule, the authors': with one score s, class 1 is predicted where
    s > 0.
    """
    return jnp.where(jnp.isnan(logits).any(-1), -1, logits.argmax(-1))
