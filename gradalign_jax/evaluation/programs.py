"""The compiled measurements of a classifier on one split: predictions under each attack, alignments, distances.

ε is traced, so a new value never recompiles. Results are arrays on the host, one row per image; means are taken later.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from gradalign_jax import alignment, parallel
from gradalign_jax.attacks import cw, pgd, square, square_l2
from gradalign_jax.data import pipeline
from gradalign_jax.evaluation.blocks import Blocks
from gradalign_jax.evaluation.options import Attacks
from gradalign_jax.ops import precision
from gradalign_jax.types import Array, Attack, Classifier, Estimate, LogitsFn, Variables, predicted


class Model(NamedTuple):
    """A classifier with its weights, in evaluation mode.

    A call returns the logits behind every reported number; `searched` returns the model prepared for an attack's many
    calls.
    """

    classifier: Classifier
    variables: Variables

    def __call__(self, image: Array) -> Array:
        """Return logits `[B, K]`."""
        return self.classifier.apply(self.variables, image, train=False)[0]

    def searched(self, name: str) -> LogitsFn:
        """Return the logits function for a search with this precision (one of `precision.NAMES`)."""
        return self.classifier.searched(self.variables, precision.factors(name))


class Evaluation:
    """The measurements of one classifier on one split; a program is built when it is first used.

    Every measurement takes `variables` with a leading device axis (`parallel.replicate`), and `part`, a range of
    positions in the split (default: all).

    Args:
      classifier: the model; it is always called in evaluation mode.
      split: images, labels and indices on the host.
      on: the devices.
      block: images per device and program call.
      key: source of the attacks' randomness; all ε share the same noise.
      attacks: white-box attacks by name, built by `attacks.pgd.make`.
      delta_x: the Δx of ᾱ_Δx; None leaves that alignment out.
      loss: the loss that the attacks ascend, to count the images where its gradient is zero.
      black_box: `attacks.square.parts(...)` or `attacks.square_l2.parts(...)`.
      nearest: `attacks.cw.make(...)`.
      search, queries: precision of the inner steps of `attacks` and of the queries of `black_box` (one of
        `precision.NAMES`). The images they find are classified by the model itself, in JAX's current precision.
      block_key: name of the setting behind `block`, for the message when memory runs out.
    """

    def __init__(
        self,
        classifier: Classifier,
        split: pipeline.Split,
        *,
        on: Sequence[jax.Device],
        block: int,
        key: Array,
        attacks: Mapping[str, Attack],
        delta_x: Estimate | None,
        loss: str = "margin",
        black_box: square.Parts | None = None,
        nearest: Callable[..., cw.Found] | None = None,
        search: str = "float32",
        queries: str = "float32",
        block_key: str = "config.evaluate.block",
    ):
        self.blocks = Blocks(split, on=on, block=block, key=key, block_key=block_key)
        self.size, self.label, self.block = self.blocks.size, self.blocks.label, self.blocks.block
        self.devices = self.blocks.devices
        self.classifier, self._attacks, self._loss = classifier, attacks, loss
        self._black_box, self._nearest = black_box, nearest
        self._search, self._queries = search, queries
        self._delta_x = parallel.replicate(delta_x.delta_x if delta_x else (), on)
        self._attacked: dict[str, Callable] = {}

    def resized(self, block: int) -> "Evaluation":
        """Return this evaluation in blocks of another size, without another copy of the split on the devices."""
        other = copy.copy(self)
        other.blocks, other._attacked = self.blocks.resized(block), {}
        other.block = other.blocks.block
        for name, value in vars(type(self)).items():
            if isinstance(value, cached_property):
                vars(other).pop(name, None)  # a program of the other size
        return other

    def _program(self, measure: Callable, *in_axes: int | None) -> Callable:
        """Build a program of measure(model, batch, keys, rows, *rest)."""
        return self.blocks.program(lambda variables, *rest: measure(Model(self.classifier, variables), *rest), *in_axes)

    @cached_property
    def _clean_program(self) -> Callable:
        return self._program(lambda model, batch, keys, rows: predicted(model(batch.image)))

    def _attack_program(self, name: str) -> Callable:
        def attacked(model, batch, keys, rows, epsilon, step_size):
            with precision.scope(self._search):
                image = self._attacks[name](
                    model.searched(self._search), keys, batch.image, batch.label, epsilon, step_size
                )
            return predicted(model(image))

        if name not in self._attacked:
            self._attacked[name] = self._program(attacked, None, None)
        return self._attacked[name]

    @cached_property
    def _alignment_program(self) -> Callable:
        def aligned(model, batch, keys, rows, delta_x):
            blind = pgd.vanishing(model, batch.image, batch.label, self._loss)
            return alignment.measure_with_theory(model, delta_x or None, *batch) | {"zero_gradient": blind}

        return self._program(aligned, 0)

    @cached_property
    def _by_class_program(self) -> Callable:
        return self._program(
            lambda model, batch, keys, rows, delta_x: alignment.by_class(model, delta_x or None, *batch), 0
        )

    @property
    def _square(self) -> square.Parts:
        assert self._black_box is not None, "this Evaluation was built without Square Attack"
        return self._black_box

    @cached_property
    def _start_program(self) -> Callable:
        def start(model, batch, keys, rows):
            return self._square.start(model, keys, batch.image, batch.label, rows["epsilon"])

        return self._program(start)

    @cached_property
    def _query_program(self) -> Callable:
        def query(model, batch, keys, rows, first, last):
            arguments = (keys, batch.image, batch.label, rows["epsilon"])
            with precision.scope(self._queries):
                logits_fn = model.searched(self._queries)
                state = self._square.search(logits_fn, *arguments, rows["state"], first, last)
            return self._square.decide(model, *arguments[1:], state)

        return self._program(query, None, None)

    @cached_property
    def _nearest_program(self) -> Callable:
        nearest = self._nearest
        assert nearest is not None, "this Evaluation was built without Carlini and Wagner's attack"
        return self._program(lambda model, batch, keys, rows: nearest(model, batch.image, batch.label).distance)

    def clean(self, variables: Variables, part: range | None = None) -> np.ndarray:
        """Return the predicted class of each image, int `[n]`."""
        return self._clean_program(variables, self.blocks.rows(part))

    def attacked(
        self, variables: Variables, attack: str, epsilon: float, step_size: float, part: range | None = None
    ) -> np.ndarray:
        """Return the predicted class of each image after an attack of size ε, int `[n]`."""
        sizes = np.float32(epsilon), np.float32(step_size)
        return self._attack_program(attack)(variables, self.blocks.rows(part), *sizes)

    def errors(
        self, variables: Variables, attack: str, epsilon: float, step_size: float, part: range | None = None
    ) -> np.ndarray:
        """Return which images are misclassified after an attack of size ε (0: no attack), bool `[n]`."""
        sizes = epsilon, step_size
        found = self.clean(variables, part) if epsilon == 0 else self.attacked(variables, attack, *sizes, part)
        return found != self.label[self.blocks.rows(part)["place"]]

    def alignments(self, variables: Variables, part: range | None = None) -> dict[str, np.ndarray]:
        """Return `alignment.measure_with_theory`, and if the loss has no gradient (`zero_gradient`), `[n]` each."""
        return self._alignment_program(variables, self.blocks.rows(part), self._delta_x)

    def by_class(self, variables: Variables, part: range | None = None) -> dict[str, np.ndarray]:
        """Return all of `alignment.by_class`, `[n, K]` each."""
        return self._by_class_program(variables, self.blocks.rows(part), self._delta_x)

    def query(
        self, variables: Variables, place: np.ndarray, epsilon: np.ndarray, state: square.State, first: int, last: int
    ) -> square.State:
        """Run Square Attack's queries first .. last - 1 on the images at `place`, each with its own ε and state."""
        rows = {"place": place, "epsilon": np.asarray(epsilon, np.float32), "state": state}
        return self._query_program(variables, rows, np.int32(first), np.int32(last))

    def square(
        self,
        variables: Variables,
        epsilons: Sequence[float],
        queries: int,
        part: range | None = None,
        tick: Callable[[int, int], None] = lambda queries, left: None,
    ) -> dict[str, np.ndarray]:
        """Run Square Attack at all ε at once.

        Blocks hold (image, ε) pairs; after each chunk of queries the fooled pairs leave and the rest are packed.

        Args:
          variables: the weights.
          epsilons: `[E]`.
          queries: budget for each image and ε.
          part: positions in the split.
          tick: as in `attacks.square.run`.

        Returns:
          `fooled` (an image misclassified without an attack counts) and the number of `queries`, `[E, n]` each.
        """
        place = self.blocks.rows(part)["place"]
        each = np.repeat(np.asarray(epsilons, np.float32), len(place))
        found = self.square_pairs(variables, np.tile(place, len(epsilons)), each, queries, tick)
        return {name: values.reshape(len(epsilons), len(place)) for name, values in found.items()}

    def square_pairs(
        self,
        variables: Variables,
        place: np.ndarray,
        epsilon: np.ndarray,
        queries: int,
        tick: Callable[[int, int], None] = lambda queries, left: None,
    ) -> dict[str, np.ndarray]:
        """Run Square Attack on pairs of an image's position and an ε, `[n]` each; results as in `square`, `[n]`."""
        rows = {"place": place, "epsilon": np.asarray(epsilon, np.float32)}

        def start(pairs):
            return self._start_program(variables, {name: leaf[pairs] for name, leaf in rows.items()})

        def search(pairs, state, first, last):
            return self.query(variables, rows["place"][pairs], rows["epsilon"][pairs], state, first, last)

        state = square.run(start, search, len(place), queries, tick)
        return {"fooled": ~(np.asarray(state.margin) > 0), "queries": np.asarray(state.queries)}

    def nearest(self, variables: Variables, part: range | None = None) -> np.ndarray:
        """Return the L2 distance to the nearest misclassified image found, `[n]`; +inf where none was found."""
        return self._nearest_program(variables, self.blocks.rows(part))


_SQUARES = {"linf": square, "l2": square_l2}


def build(classifier: Classifier, split: pipeline.Split, attacks: Attacks, **options: Any) -> Evaluation:
    """Build the `Evaluation` of these attacks; `options` are its other arguments (on, block, key, delta_x, ...)."""
    bounds, white, black, nearest = attacks.bounds, attacks.pgd, attacks.square, attacks.cw
    white_box = {}
    if white:
        white_box = {f"pgd_{norm}": pgd.make(norm, white.steps, loss=white.loss, bounds=bounds) for norm in white.norms}
    return Evaluation(
        classifier,
        split,
        attacks=white_box,
        loss=attacks.loss,
        search=white.precision if white else "float32",
        black_box=_SQUARES[black.norm].parts(black.queries, bounds=bounds) if black else None,
        queries=black.precision if black else "float32",
        nearest=cw.make(iterations=nearest.iterations, learning_rate=nearest.learning_rate, bounds=bounds)
        if nearest
        else None,
        **options,
    )
