"""Measures a classifier on one split: what it says under an attack of size ε, and every alignment.

The split goes through in blocks of one fixed size, whole blocks to a device, keyed image by image. What is measured
of an image thus depends neither on the number of devices nor on who shares its block, and ε, being traced, never
recompiles. Reductions are the caller's, on the host.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from gradalign_jax import alignment, memory, parallel
from gradalign_jax.attacks import pgd, square
from gradalign_jax.attacks.cw import Found
from gradalign_jax.data import pipeline
from gradalign_jax.ops import precision
from gradalign_jax.types import Array, Attack, Batch, Classifier, Estimate, LogitsFn, Variables, predicted


class Reported(NamedTuple):
    """A model on a device: called, the logits that are reported; `searched`, the same prepared for a search."""

    classifier: Classifier
    variables: Variables

    def __call__(self, image: Array) -> Array:
        """Logits `[B, K]` of images, in evaluation mode."""
        return self.classifier.apply(self.variables, image, train=False)[0]

    def searched(self, name: str) -> LogitsFn:
        """The logits that a search of this precision sees."""
        return self.classifier.searched(self.variables, precision.factors(name))


class Evaluation:
    """One split on the devices, and the compiled programs that measure on it.

    Every measurement takes `variables` with a leading device axis, as `parallel.replicate` makes it, and `part`, the
    images to measure (a range of places in the split; default: all).

    Args:
      classifier: the model; evaluation mode is used throughout.
      split: images, labels and indices on the host.
      on: the devices.
      block: images per device and program call.
      key: the attacks' randomness derives from it, ε's index in no way: all ε share their noise.
      attacks: by name, as `attacks.pgd.make` builds them.
      delta_x: for ᾱ_Δx; None leaves it out.
      loss: what the attacks ascend; where its gradient is zero they are blind.
      black_box: `attacks.square.parts(...)`.
      nearest: `attacks.cw.make(...)`.
      search, queries: precision of the inner steps of `attacks` and of the queries of `black_box`, of
        `precision.NAMES`. What they find is judged by the model as it is, with the precision that JAX is set to.
      block_key: what `block` is called where it was set, for the message when memory runs out.
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
        nearest: Callable[..., Found] | None = None,
        search: str = "float32",
        queries: str = "float32",
        block_key: str = "config.evaluate.block",
    ):
        self.size, self.label, self.block = len(split.label), np.asarray(split.label), min(block, len(split.label))
        self._on, self._key, self._block_key = on, key, block_key
        self._data = parallel.replicate(split, on)
        self._estimate = parallel.replicate(delta_x.arrays if delta_x else (), on)
        self._delta_x, self._loss = delta_x, loss

        def compiled(program: Callable, *in_axes: int | None) -> Callable:
            """program(model, batch, keys, rows, *rest), over the places `rows["place"]` of the split."""

            def on_device(variables, data, key, rows, *rest):
                batch = pipeline.gather(data, rows["place"])
                keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(rows["place"])
                return program(Reported(classifier, variables), batch, keys, rows, *rest)

            return parallel.pmap(on_device, on, in_axes=(0, 0, None, 0, *in_axes))

        def attacked(attack, model, batch, keys, rows, epsilon, step_size):
            with precision.scope(search):
                image = attack(model.searched(search), keys, batch.image, batch.label, epsilon, step_size)
            return predicted(model(image))

        def start(logits_fn, batch, keys, rows):
            return black_box.start(logits_fn, keys, batch.image, batch.label, rows["epsilon"])

        def query(model, batch, keys, rows, first, last):
            arguments = (keys, batch.image, batch.label, rows["epsilon"])
            with precision.scope(queries):
                state = black_box.search(model.searched(queries), *arguments, rows["state"], first, last)
            return black_box.decide(model, *arguments[1:], state)

        self._attacked = {name: compiled(partial(attacked, attack), None, None) for name, attack in attacks.items()}
        self._clean = compiled(lambda logits_fn, batch, keys, rows: predicted(logits_fn(batch.image)))
        self._aligned = compiled(self._align, 0)
        self._by_class = compiled(self._align_by_class, 0)
        self._start, self._query = compiled(start), compiled(query, None, None)
        self._nearest = compiled(lambda logits_fn, batch, *_: nearest(logits_fn, batch.image, batch.label).distance)

    def _align(self, logits_fn, batch, keys, rows, arrays):
        bound = self._delta_x and partial(self._delta_x.delta_x, arrays)
        blind = pgd.vanishing(logits_fn, batch.image, batch.label, self._loss)
        return alignment.measure(logits_fn, bound, *batch) | {"zero_gradient": blind}

    def _align_by_class(self, logits_fn, batch, keys, rows, arrays):
        return alignment.by_class(logits_fn, self._delta_x and partial(self._delta_x.delta_x, arrays), *batch)

    def _over_blocks(self, program: Callable, variables: Variables, rows: Any, *rest) -> Any:
        """Calls the program on `rows` (arrays `[n, ...]`) block by block and returns `[n, ...]` results on the host."""
        count, group = len(rows["place"]), len(self._on) * self.block
        pending = []
        with memory.limited_by(self._block_key, self.block, self._on[0]):
            for first in range(0, count, group):  # the last call repeats a row until it is full
                some = np.arange(first, first + group).clip(max=count - 1).reshape(len(self._on), self.block)
                chosen = parallel.split(jax.tree.map(lambda leaf: leaf[some], rows), self._on)
                pending.append(program(variables, self._data, self._key, chosen, *rest))
            # All are on their way; fetching the first does not hold up the rest.
            results = jax.device_get(pending)
        return jax.tree.map(
            lambda *parts: np.concatenate([part.reshape(group, *part.shape[2:]) for part in parts])[:count], *results
        )

    def program(self, measure: Callable[[Variables, Batch], Any]) -> Callable[[Variables], Any]:
        """A measurement of one's own, measure(variables, batch) -> `[B, ...]`, as a function of variables alone."""

        def on_device(variables, data, key, rows):
            return measure(variables, pipeline.gather(data, rows["place"]))

        compiled = parallel.pmap(on_device, self._on, in_axes=(0, 0, None, 0))
        return lambda variables: self._over_blocks(compiled, variables, self._rows(None))

    def _rows(self, part: range | None) -> dict[str, np.ndarray]:
        return {"place": np.asarray(range(self.size) if part is None else part, np.int32)}

    def predictions(
        self, variables: Variables, attack: str, epsilon: float, step_size: float, part: range | None = None
    ) -> np.ndarray:
        """The class each image is taken for after an attack of size ε, int `[n]`; no attack at ε = 0."""
        if epsilon == 0:
            return self._over_blocks(self._clean, variables, self._rows(part))
        values = (np.float32(epsilon), np.float32(step_size))
        return self._over_blocks(self._attacked[attack], variables, self._rows(part), *values)

    def errors(self, variables: Variables, attack: str, epsilon: float, step_size: float) -> np.ndarray:
        """Which images are misclassified after an attack of size ε, bool `[N]`."""
        return self.predictions(variables, attack, epsilon, step_size) != self.label

    def alignments(self, variables: Variables, part: range | None = None) -> dict[str, np.ndarray]:
        """All of `alignment.measure`, and whether the loss's gradient is zero (`zero_gradient`), `[n]` each."""
        return self._over_blocks(self._aligned, variables, self._rows(part), self._estimate)

    def by_class(self, variables: Variables, part: range | None = None) -> dict[str, np.ndarray]:
        """All of `alignment.by_class`, `[n, K]` each."""
        return self._over_blocks(self._by_class, variables, self._rows(part), self._estimate)

    def query(
        self, variables: Variables, place: np.ndarray, epsilon: np.ndarray, state: square.State, first: int, last: int
    ) -> square.State:
        """Iterations first .. last - 1 of Square Attack on the images at `place`, each with its ε and its state."""
        rows = {"place": place, "epsilon": np.asarray(epsilon, np.float32), "state": state}
        return self._over_blocks(self._query, variables, rows, np.int32(first), np.int32(last))

    def square(
        self,
        variables: Variables,
        epsilons: Sequence[float],
        queries: int,
        part: range | None = None,
        tick: Callable[[int, int], None] = lambda queries, left: None,
    ) -> dict[str, np.ndarray]:
        """Square Attack at all ε at once: `fooled` (or misclassified before) and `queries` spent, `[ε, n]` each.

        (image, ε) pairs fill the blocks; the fooled leave after each chunk of queries and the rest close ranks.
        """
        place = self._rows(part)["place"]
        rows = {
            "place": np.tile(place, len(epsilons)),
            "epsilon": np.repeat(np.asarray(epsilons, np.float32), len(place)),
        }

        def start(pairs):
            return self._over_blocks(self._start, variables, {name: leaf[pairs] for name, leaf in rows.items()})

        def search(pairs, state, first, last):
            return self.query(variables, rows["place"][pairs], rows["epsilon"][pairs], state, first, last)

        state = square.run(start, search, len(rows["place"]), queries, tick)
        shape = (len(epsilons), len(place))
        return {"fooled": ~(state.margin > 0).reshape(shape), "queries": state.queries.reshape(shape)}

    def nearest(self, variables: Variables, part: range | None = None) -> np.ndarray:
        """The L2 distance to the nearest image found to be misclassified, `[n]`; +inf where none was."""
        return self._over_blocks(self._nearest, variables, self._rows(part))
