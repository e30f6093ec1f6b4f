"""Measures a classifier on one split: who is misclassified under an attack of size ε, and every alignment.

The split goes through in blocks of one fixed size, whole blocks to a device, keyed image by image. What is measured
of an image thus depends neither on the number of devices nor on who shares its block, and ε, being traced, never
recompiles. Reductions are the caller's, on the host.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import numpy as np

from gradalign_jax import alignment, parallel
from gradalign_jax.data import pipeline
from gradalign_jax.types import Array, Attack, Classifier, Estimate, Variables


class Evaluation:
    """One split on the devices, and the compiled programs that measure on it.

    Args:
      classifier: the model; evaluation mode is used throughout.
      split: images, labels and indices on the host.
      on: the devices.
      block: images per device and program call.
      key: the attacks' random starts derive from it, ε's index in no way: all ε share their noise.
      attacks: by name, as `attacks.pgd.make` builds them.
      delta_x: for ᾱ_Δx; None leaves it out.
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
    ):
        self.size = len(split.label)
        self._on, self._key = on, key
        self._blocks = self._plan(block)
        self._data = parallel.replicate(split, on)
        self._estimate = parallel.replicate(delta_x.arrays if delta_x else (), on)

        def logits_fn_of(variables: Variables):
            return lambda image: classifier.apply(variables, image, train=False)[0]

        def attacked(attack: Attack) -> Callable:
            def wrong(variables, data, positions, key, epsilon, step_size):
                batch = pipeline.gather(data, positions)
                keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
                logits_fn = logits_fn_of(variables)
                image = attack(logits_fn, keys, batch.image, batch.label, epsilon, step_size)
                return logits_fn(image).argmax(-1) != batch.label

            return parallel.pmap(wrong, on, in_axes=(0, 0, 0, None, None, None))

        def clean(variables, data, positions):
            batch = pipeline.gather(data, positions)
            return logits_fn_of(variables)(batch.image).argmax(-1) != batch.label

        def aligned(variables, data, positions, arrays):
            bound = delta_x and partial(delta_x.delta_x, arrays)
            return alignment.measure(logits_fn_of(variables), bound, *pipeline.gather(data, positions))

        self._attacked = {name: attacked(attack) for name, attack in attacks.items()}
        self._clean = parallel.pmap(clean, on)
        self._aligned = parallel.pmap(aligned, on)

    def _plan(self, block: int) -> list[Array]:
        """Positions `[devices, block]` of each program call; the last call repeats blocks to fill its devices."""
        positions, self._mask = pipeline.padded_blocks(self.size, min(block, self.size))
        count = len(self._on)
        missing = -len(positions) % count
        positions = np.concatenate([positions, np.broadcast_to(positions[-1:], (missing, positions.shape[1]))])
        return [parallel.split(group, self._on) for group in positions.reshape(-1, count, positions.shape[1])]

    @property
    def calls(self) -> int:
        """Program calls that one measurement takes."""
        return len(self._blocks)

    def over_blocks(self, program: Callable, tick: Callable, variables: Variables, *arguments):
        """Calls `program(variables, split, positions, *arguments)` on all blocks, as `parallel.pmap` made it.

        Puts the results, rows of images each, back in order, on the host.
        """
        pending = [program(variables, self._data, block, *arguments) for block in self._blocks]
        results = []
        for result in pending:  # all are on their way; fetching the first does not hold up the rest
            results.append(jax.device_get(result))
            tick()
        blocks = len(self._mask)
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:blocks][self._mask], *results)

    def errors(
        self,
        variables: Variables,
        attack: str,
        epsilon: float,
        step_size: float,
        tick: Callable = lambda: None,
    ) -> np.ndarray:
        """Which images are misclassified after an attack of size ε, bool `[N]`; no attack at ε = 0.

        `variables` carry a leading device axis, as `parallel.replicate` makes it; `tick()` is called after each of
        the `calls` program calls.
        """
        if epsilon == 0:
            return self.over_blocks(self._clean, tick, variables)
        values = (np.float32(epsilon), np.float32(step_size))
        return self.over_blocks(self._attacked[attack], tick, variables, self._key, *values)

    def alignments(self, variables: Variables, tick: Callable = lambda: None) -> dict[str, np.ndarray]:
        """All of `alignment.measure`, `[N]` each."""
        return self.over_blocks(self._aligned, tick, variables, self._estimate)
