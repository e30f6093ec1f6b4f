"""The measurements of a classifier on a split, in order, cut into points that are recorded and survive a kill.

A point is one measurement on a range of images, the most work that a kill can lose: a stopped evaluation resumes at the
first point that is not recorded. Values are plain lists, so a recorded value equals a fresh one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gradalign_jax.evaluation.options import Attacks
from gradalign_jax.evaluation.programs import Evaluation
from gradalign_jax.terminal import progress_bar
from gradalign_jax.types import Variables

# Blocks of images per point. Square Attack fills as many blocks for every ε.
BLOCKS, _SQUARE_BLOCKS = 8, 1


class Plan(NamedTuple):
    """The measurements to make.

    white_box: step size and ascending ε > 0 of each white-box attack, by name (`pgd_linf`, `pgd_l2`).
    square_epsilons, square_queries: of Square Attack; 0 queries leave it out.
    square_images: number of images for Square Attack (0 = all).
    nearest_images: number of images for Carlini and Wagner's attack (0 = none).
    by_class: also measure distances and alignments of every class.
    loss: the loss that the white-box attacks ascend.
    """

    white_box: Mapping[str, tuple[float, Sequence[float]]]
    square_epsilons: Sequence[float] = ()
    square_queries: int = 0
    square_images: int = 0
    nearest_images: int = 0
    by_class: bool = False
    loss: str = "cross_entropy"

    def grid(self, attack: str) -> list[float]:
        """Return the ε of an attack's error curve, 0 first."""
        epsilons = self.square_epsilons if attack == "square_linf" else self.white_box[attack][1]
        return [0.0, *map(float, epsilons)]


def plan(attacks: Attacks, by_class: bool = False) -> Plan:
    """Return the measurements of these attacks; the step size and the ε of PGD L2 must be given."""
    white, black, nearest = attacks.pgd, attacks.square, attacks.cw
    white_box: dict[str, tuple[Any, Any]] = {}
    if white:
        grids = {"linf": (white.step_size, attacks.epsilons), "l2": (white.l2_step_size, white.l2_epsilons)}
        white_box = {f"pgd_{norm}": grid for norm, grid in grids.items() if norm in white.norms}
    return Plan(
        white_box,
        attacks.epsilons,
        square_queries=black.queries if black else 0,
        square_images=black.images if black else 0,
        nearest_images=nearest.images if nearest else 0,
        by_class=by_class,
        loss=attacks.loss,
    )


class Point(NamedTuple):
    """One measurement; `compute()` returns lists by name, with one entry for each image of `part`."""

    measure: str
    epsilon: float | None
    part: range
    compute: Callable[[], dict[str, list]]


def compute(point: Point) -> dict[str, list]:
    """Compute a point without recording it."""
    return point.compute()


Values = dict[tuple[str, float | None], dict[str, np.ndarray]]  # by (measure, ε) and name: [N, ...]


def measure(
    evaluation: Evaluation,
    variables: Variables,
    plan: Plan,
    remember: Callable[[Point], dict[str, list]] = compute,
) -> Values:
    """Make every measurement of a plan, under one progress bar.

    Args:
      evaluation: the programs.
      variables: the weights, with a leading device axis.
      plan: the measurements.
      remember: returns a point's recorded value, or computes and records it.
    """
    with progress_bar(unit="point", desc="test", smoothing=0.05) as bar:

        def tick(queries: int, left: int) -> None:
            bar.set_description(f"test square_linf, query {queries}, {left} left")

        points = schedule(evaluation, variables, plan, tick)
        bar.reset(len(points))
        measured = []
        for point in points:
            size = "" if point.epsilon is None else f", ε={point.epsilon:g}"
            bar.set_description(f"test {point.measure}{size}", refresh=False)
            measured.append((point, remember(point)))
            bar.update()
    return gather(measured)


def schedule(
    evaluation: Evaluation,
    variables: Variables,
    plan: Plan,
    tick: Callable[[int, int], None] = lambda queries, left: None,
) -> list[Point]:
    """Return the points of a plan, cheap ones first; `tick` reports Square Attack's progress (`attacks.square.run`)."""

    def listed(measure, part):
        return {name: value.tolist() for name, value in measure(variables, part).items()}

    def clean(part):
        return {"predicted": evaluation.clean(variables, part).tolist()}

    def attacked(attack, epsilon, step_size, part):
        return {"predicted": evaluation.attacked(variables, attack, epsilon, step_size, part).tolist()}

    def square(part):
        found = evaluation.square(variables, plan.square_epsilons, plan.square_queries, part, tick)
        return {name: value.T.tolist() for name, value in found.items()}

    def nearest(part):
        return {"distance": evaluation.nearest(variables, part).tolist()}

    def points(name, epsilon, compute, size=evaluation.size, blocks=BLOCKS):
        return [Point(name, epsilon, part, partial(compute, part)) for part in evaluation.blocks.parts(blocks, size)]

    found = points("clean", None, clean) + points("alignment", None, partial(listed, evaluation.alignments))
    if plan.by_class:
        found += points("by_class", None, partial(listed, evaluation.by_class))
    for attack, (step_size, epsilons) in plan.white_box.items():
        for epsilon in epsilons:
            found += points(attack, epsilon, partial(attacked, attack, epsilon, step_size))
    if plan.square_queries:
        size = min(plan.square_images or evaluation.size, evaluation.size)
        found += points("square_linf", None, square, size, _SQUARE_BLOCKS)
    return found + points("nearest", None, nearest, min(plan.nearest_images, evaluation.size))


def gather(measured: Iterable[tuple[Point, dict[str, list]]]) -> Values:
    """Join the parts of each measurement: arrays `[N, ...]` by (measure, ε) and name."""
    parts: dict = {}
    for point, value in measured:
        parts.setdefault((point.measure, point.epsilon), []).append(value)
    return {
        key: {name: np.concatenate([np.asarray(value[name]) for value in values]) for name in values[0]}
        for key, values in parts.items()
    }
