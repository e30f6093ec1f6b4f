"""Everything that is measured of one classifier on one split: a list of points, and what their values come to.

A point is one measurement on a range of images, small enough to be worth remembering: an evaluation that was stopped
goes on at the point where it was. Values are plain lists, so that a remembered one is the same as a fresh one.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gradalign_jax import robustness
from gradalign_jax.data import Split
from gradalign_jax.evaluation import warnings
from gradalign_jax.evaluation.programs import Evaluation
from gradalign_jax.types import Variables

ATTACKS = ("pgd_linf", "pgd_l2", "square_linf")
ALPHAS = ("alpha_delta_x", "alpha_x", "alpha_x_label", "alpha_x_target_label", "alpha_x_closest_predicted")
# Blocks of images in one point. A block of Square Attack's holds an (image, ε) pair in each row.
_BLOCKS, _SQUARE_BLOCKS = 8, 1


class Plan(NamedTuple):
    """What to measure.

    white_box: by attack (`pgd_linf`, `pgd_l2`): its step size and its ascending ε > 0.
    square_epsilons, square_queries: Square Attack's; 0 queries: none.
    square_images, nearest_images: of these two attacks, the first so many; `nearest` is Carlini-Wagner's, 0: none.
    by_class: also distances and alignments of every class.
    loss: what the white box ascends; a warning depends on it.
    """

    white_box: Mapping[str, tuple[float, Sequence[float]]]
    square_epsilons: Sequence[float] = ()
    square_queries: int = 0
    square_images: int = 0
    nearest_images: int = 0
    by_class: bool = False
    loss: str = "cross_entropy"


class Point(NamedTuple):
    """One measurement; `compute()` gives equally long lists by name, an entry for each image of `part`."""

    measure: str
    epsilon: float | None
    part: range
    compute: Callable[[], dict[str, list]]


Values = dict[tuple[str, float | None], dict[str, np.ndarray]]


def _parts(size: int, step: int) -> list[range]:
    return [range(first, min(first + step, size)) for first in range(0, size, step)]


def schedule(
    evaluation: Evaluation,
    variables: Variables,
    plan: Plan,
    tick: Callable[[int, int], None] = lambda queries, left: None,
) -> list[Point]:
    """The points of a plan, cheap ones first. `tick` follows Square Attack (see `attacks.square.run`)."""

    def predicted(attack, epsilon, step_size, part):
        return {"predicted": evaluation.predictions(variables, attack, epsilon, step_size, part).tolist()}

    def listed(measure, part):
        return {name: value.tolist() for name, value in measure(variables, part).items()}

    def square(part):
        found = evaluation.square(variables, plan.square_epsilons, plan.square_queries, part, tick)
        return {name: value.T.tolist() for name, value in found.items()}

    def nearest(part):
        return {"distance": evaluation.nearest(variables, part).tolist()}

    parts = _parts(evaluation.size, _BLOCKS * evaluation.block)
    points = [Point("clean", None, part, partial(predicted, "", 0.0, 0.0, part)) for part in parts]
    points += [Point("alignment", None, part, partial(listed, evaluation.alignments, part)) for part in parts]
    if plan.by_class:
        points += [Point("by_class", None, part, partial(listed, evaluation.by_class, part)) for part in parts]
    for attack, (step_size, epsilons) in plan.white_box.items():
        for epsilon in epsilons:
            points += [
                Point(attack, epsilon, part, partial(predicted, attack, epsilon, step_size, part)) for part in parts
            ]
    if plan.square_queries:
        size = min(plan.square_images or evaluation.size, evaluation.size)
        parts = _parts(size, _SQUARE_BLOCKS * evaluation.block)
        points += [Point("square_linf", None, part, partial(square, part)) for part in parts]
    parts = _parts(min(plan.nearest_images, evaluation.size), _BLOCKS * evaluation.block)
    return points + [Point("nearest", None, part, partial(nearest, part)) for part in parts]


def gather(measured: Iterable[tuple[Point, dict[str, list]]]) -> Values:
    """Puts the parts of each measurement together: arrays `[N, ...]` by (measure, ε) and name."""
    parts: dict = {}
    for point, value in measured:
        parts.setdefault((point.measure, point.epsilon), []).append(value)
    return {
        key: {name: np.concatenate([np.asarray(value[name]) for value in values]) for name in values[0]}
        for key, values in parts.items()
    }


def wrong(values: Values, label: np.ndarray, plan: Plan) -> dict[str, np.ndarray]:
    """Who is misclassified, bool `[1 + E, N]` by attack; the first row is without an attack."""
    clean = values["clean", None]["predicted"] != label
    rows = {
        attack: np.stack([clean] + [values[attack, e]["predicted"] != label for e in epsilons])
        for attack, (_, epsilons) in plan.white_box.items()
    }
    if ("square_linf", None) in values:
        fooled = values["square_linf", None]["fooled"].T
        rows["square_linf"] = np.concatenate([clean[None, : fooled.shape[1]], fooled])
    return rows


def _grid(plan: Plan, attack: str) -> list[float]:
    epsilons = plan.square_epsilons if attack == "square_linf" else plan.white_box[attack][1]
    return [0.0, *map(float, epsilons)]


def _curve(plan: Plan, attack: str, rows: np.ndarray) -> dict[str, Any]:
    epsilons, errors = _grid(plan, attack), rows.mean(1).tolist()
    half = robustness.epsilon_half(epsilons, errors)
    return {
        "epsilons": epsilons,
        "errors": errors,
        "images": rows.shape[1],
        "epsilon_half": float(half),
        "threshold": half.threshold,
        "censored": half.censored,
    }


def _finite(values: np.ndarray) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]


def summarise(values: Values, split: Split, plan: Plan) -> dict[str, Any]:
    """The numbers of a result: `accuracy`, `epsilon_half`, `curves`, the mean alignments, `linearity`, `warnings`.

    Numbers are None where nothing was measured. `smallest_epsilon` has, by attack, the smallest ε of the grid that
    fooled each image, 0 where it was misclassified without an attack, None where no ε did. `linearity` holds Figure
    7's pairs image by image: the signed linear approximation of the distance to the decision boundary (Lemma 1), and
    Carlini-Wagner's distance.
    """
    rows, wrong_clean = wrong(values, split.label, plan), values["clean", None]["predicted"] != split.label
    curves = {attack: _curve(plan, attack, of) for attack, of in rows.items()}
    alignment = values["alignment", None]
    means = {name: float(np.mean(alignment[name], dtype=np.float64)) for name in ALPHAS if name in alignment}
    white_box = linearity = None
    if "square_linf" in rows:
        queries = values["square_linf", None]["queries"]
        spent = [float(q[q > 0].mean()) if np.any(q > 0) else 0.0 for q in queries.T]
        curves["square_linf"] |= {"queries": plan.square_queries, "mean_queries": [0.0, *spent]}
        if "pgd_linf" in rows and _grid(plan, "pgd_linf") == _grid(plan, "square_linf"):
            white_box = rows["pgd_linf"][:, : rows["square_linf"].shape[1]].mean(1).tolist()
        else:
            white_box = []
    if ("nearest", None) in values:
        distance = values["nearest", None]["distance"]
        first = slice(len(distance))
        linearity = {
            "index": split.index[first].tolist(),
            "approximated": _finite(alignment["distance"][first]),
            "carlini_wagner": _finite(distance),
            "correct": (~wrong_clean[first]).tolist(),
            "median_carlini_wagner": _finite([np.median(distance)])[0],
        }
    return {
        "accuracy": 1 - float(wrong_clean.mean()),
        "epsilon_half": dict.fromkeys(ATTACKS) | {attack: curve["epsilon_half"] for attack, curve in curves.items()},
        **dict.fromkeys(ALPHAS),
        **means,
        "curves": curves,
        "smallest_epsilon": {
            attack: _finite(robustness.smallest_epsilon(_grid(plan, attack), of)) for attack, of in rows.items()
        },
        "linearity": linearity,
        "warnings": warnings.warnings(curves, float(np.mean(alignment["zero_gradient"])), white_box, plan.loss),
    }


def table_of_images(values: Values, split: Split, plan: Plan) -> str:
    """CSV with a line per image: closest class c̃, truth, prediction, distances, alignments, what attacks made of it.

    `distance_class_k` is the signed linearised distance to class k's boundary, `alignment_class_k` the cosine of
    ∇(logit_k - logit_y) with Δx to k, `closest_class_attack_epsilon_ε` the class after PGD L∞ of size ε (the authors'
    columns). `smallest_epsilon_A` is the smallest ε of the grid at which attack A fooled the image. What was not
    measured, or does not exist (k = y, no ε fooled), is empty.
    """
    alignment, size = values["alignment", None], len(split.label)
    columns: dict[str, Any] = {
        "index": split.index,
        "ground_truth_class": split.label,
        "predicted_class": values["clean", None]["predicted"],
        "closest_class": alignment["target"],
        "distance": alignment["distance"],
        "alpha_delta_x": alignment.get("alpha_delta_x", []),
        "carlini_wagner_distance": values.get(("nearest", None), {}).get("distance", []),
    }
    for name, table in values.get(("by_class", None), {}).items():
        columns |= {f"{name}_class_{k}": table[:, k] for k in range(table.shape[1])}
    for attack, rows in wrong(values, split.label, plan).items():
        columns[f"smallest_epsilon_{attack}"] = robustness.smallest_epsilon(_grid(plan, attack), rows)
    for epsilon in plan.white_box.get("pgd_linf", (0, ()))[1]:
        columns[f"closest_class_attack_epsilon_{epsilon:g}"] = values["pgd_linf", epsilon]["predicted"]

    def cell(column: Any, i: int) -> Any:
        return column[i] if i < len(column) and math.isfinite(column[i]) else ""

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell(column, i) for column in columns.values()] for i in range(size))
    return text.getvalue()
