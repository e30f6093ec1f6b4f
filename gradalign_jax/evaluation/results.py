"""The numbers of a result and the rows of images.csv, from the measured values of each image."""

import csv
import io
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from gradalign_jax import robustness
from gradalign_jax.data import Split
from gradalign_jax.evaluation import warnings
from gradalign_jax.evaluation.schedule import Plan, Values
from gradalign_jax.paper import ALPHAS

ATTACKS = ("pgd_linf", "pgd_l2", "square_linf")


def wrong(values: Values, label: np.ndarray, plan: Plan) -> dict[str, np.ndarray]:
    """Return which images each attack fools at each ε, bool `[1 + E, N]`; the first row is without an attack."""
    clean = values["clean", None]["predicted"] != label
    rows = {
        attack: np.stack([clean] + [values[attack, e]["predicted"] != label for e in epsilons])
        for attack, (_, epsilons) in plan.white_box.items()
    }
    if ("square_linf", None) in values:
        fooled = values["square_linf", None]["fooled"].T
        rows["square_linf"] = np.concatenate([clean[None, : fooled.shape[1]], fooled])
    return rows


def summarize(values: Values, split: Split, plan: Plan) -> dict[str, Any]:
    """Return the numbers of a result; None where nothing was measured.

    Returns:
      `accuracy`, `epsilon_half` by attack, the mean alignments, `curves` by attack; `smallest_epsilon`: by attack, the
      smallest ε of the grid that fooled each image, 0 where it was misclassified without an attack, None where no ε
      fooled it; `linearity`: Figure 7's pairs for each image, the signed linear approximation of the distance to the
      decision boundary (Lemma 1) and Carlini and Wagner's distance; `accuracy_by_class`; `theory`; `warnings`.
    """
    rows, clean = wrong(values, split.label, plan), values["clean", None]["predicted"] != split.label
    curves = {attack: curve(plan.grid(attack), of) for attack, of in rows.items()}
    white_box = None
    if "square_linf" in rows:
        curves["square_linf"] |= _queries(values, plan)
        white_box = _same_images(rows, plan)
    alignment = values["alignment", None]
    found = {name: float(np.mean(alignment[name], dtype=np.float64)) for name in ALPHAS if name in alignment}
    lines = warnings.collect(curves, float(np.mean(alignment["zero_gradient"])), white_box, plan.loss)
    lines += warnings.not_finite({name: alignment[name] for name in found})
    if ("nearest", None) in values and "pgd_l2" in rows:
        smallest = robustness.smallest_epsilon(plan.grid("pgd_l2"), rows["pgd_l2"])
        lines += warnings.far_descent(values["nearest", None]["distance"], smallest)
    return {
        "accuracy": 1 - float(clean.mean()),
        "epsilon_half": dict.fromkeys(ATTACKS) | {attack: curve["epsilon_half"] for attack, curve in curves.items()},
        **dict.fromkeys(ALPHAS),
        **{name: value for name, value in found.items() if math.isfinite(value)},
        "curves": curves,
        "smallest_epsilon": {
            attack: finite(robustness.smallest_epsilon(plan.grid(attack), of)) for attack, of in rows.items()
        },
        "linearity": _linearity(values, split, ~clean) if ("nearest", None) in values else None,
        "accuracy_by_class": {str(c): 1 - float(clean[split.label == c].mean()) for c in np.unique(split.label)},
        "theory": _theory(values, rows, plan, ~clean),
        "warnings": lines,
    }


def curve(epsilons: list[float], rows: np.ndarray) -> dict[str, Any]:
    """Return the error curve of `rows`, bool `[E, N]`: the images that are misclassified at each ε."""
    errors = rows.mean(1).tolist()
    half = robustness.epsilon_half(epsilons, errors)
    return {
        "epsilons": epsilons,
        "errors": errors,
        "images": rows.shape[1],
        "epsilon_half": float(half),
        "threshold": half.threshold,
        "censored": half.censored,
    }


def _queries(values: Values, plan: Plan) -> dict[str, Any]:
    """Return Square Attack's query budget, and at each ε the mean of its queries on images that needed any."""
    queries = values["square_linf", None]["queries"]
    spent = [float(q[q > 0].mean()) if np.any(q > 0) else 0.0 for q in queries.T]
    return {"queries": plan.square_queries, "mean_queries": [0.0, *spent]}


def _same_images(rows: dict[str, np.ndarray], plan: Plan) -> list[float]:
    """Return PGD L∞'s errors on Square Attack's images; [] if it has other ε or was not run."""
    if "pgd_linf" in rows and plan.grid("pgd_linf") == plan.grid("square_linf"):
        return rows["pgd_linf"][:, : rows["square_linf"].shape[1]].mean(1).tolist()
    return []


def _linearity(values: Values, split: Split, correct: np.ndarray) -> dict[str, Any]:
    distance = values["nearest", None]["distance"]
    first = slice(len(distance))
    return {
        "index": split.index[first].tolist(),
        "approximated": finite(values["alignment", None]["distance"][first]),
        "carlini_wagner": finite(distance),
        "correct": correct[first].tolist(),
        "median_carlini_wagner": finite([np.median(distance)])[0],
    }


def _theory(values: Values, rows: dict[str, np.ndarray], plan: Plan, correct: np.ndarray) -> dict[str, Any]:
    """Return how far the assumptions and bounds of the paper's theory hold; None where nothing was measured.

    Returns:
      `condition`: share of images with {c*(x), m(x)} = {y, c̃(x)} (Theorem 1).
      `lemma_1`, `lemma_1_pgd`: median over correctly classified images of Lemma 1's |ρ| over the distance that Carlini
        and Wagner's attack found, and over the smallest ε of the grid at which PGD L2 fooled the image.
      `lower_bound`, `upper_bound`: Theorem 2's bounds of the mean robustness ρ_m, inf(D) ᾱ_Δx / 2 and
        sup(D) ᾱ_Δx / 2, with D the norms of Δx.
    """
    alignment = values["alignment", None]
    rho = np.abs(alignment["distance"])
    distances = {"lemma_1": values.get(("nearest", None), {}).get("distance")}
    if "pgd_l2" in rows:
        distances["lemma_1_pgd"] = robustness.smallest_epsilon(plan.grid("pgd_l2"), rows["pgd_l2"])
    result: dict[str, float | None] = dict.fromkeys(
        ("condition", "lemma_1", "lemma_1_pgd", "lower_bound", "upper_bound")
    )
    if "condition" in alignment:  # absent from points that earlier releases recorded
        result["condition"] = float(alignment["condition"].mean())
    for name, distance in distances.items():
        if distance is not None:
            used = correct[: len(distance)] & np.isfinite(distance) & (distance > 0)
            result[name] = float(np.median(rho[: len(distance)][used] / distance[used])) if used.any() else None
    if "norm_delta_x" in alignment:
        half = float(np.mean(alignment["alpha_delta_x"], dtype=np.float64)) / 2
        norm = alignment["norm_delta_x"]
        bounds = finite([float(norm.min()) * half, float(norm.max()) * half])
        result["lower_bound"], result["upper_bound"] = bounds
    return result


def finite(values: Iterable[float]) -> list[float | None]:
    """Return plain numbers, None where a value is not finite (JSON has no infinity)."""
    return [float(value) if math.isfinite(value) else None for value in values]


def table_of_images(values: Values, split: Split, plan: Plan) -> str:
    """Return CSV with a line per image: label, prediction, closest class c̃, distances, alignments, attacks' outcomes.

    `distance_class_k` is the signed linearized distance to class k's boundary, `alignment_class_k` the cosine of
    ∇(logit_k - logit_y) with Δx to k, `closest_class_attack_epsilon_ε` the class after PGD L∞ of size ε (the authors'
    columns). `smallest_epsilon_A` is the smallest ε of the grid at which attack A fooled the image. A cell is empty
    where nothing was measured or no value exists (k = y, or no ε fooled the image).
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
        columns[f"smallest_epsilon_{attack}"] = robustness.smallest_epsilon(plan.grid(attack), rows)
    for epsilon in plan.white_box.get("pgd_linf", (0, ()))[1]:
        columns[f"closest_class_attack_epsilon_{epsilon:g}"] = values["pgd_linf", epsilon]["predicted"]

    def cell(column: Any, i: int) -> Any:
        return column[i] if i < len(column) and math.isfinite(column[i]) else ""

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell(column, i) for column in columns.values()] for i in range(size))
    return text.getvalue()
