"""Table of estimators of Δx: their scores by launch/deltax.py, and what training with them reaches."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradalign_jax.paper import DATASET_NAMES
from gradalign_jax.report.cells import Cell, Row, Table
from gradalign_jax.report.runs import Run

# Heading, factor and format of each score.
_SCORES = {
    "cosine": ("cosine", 1, ".3f"),
    "cosine_sd": ("± over images", 1, ".3f"),
    "success": ("success %", 100, ".1f"),
    "length": ("‖Δ̂x‖₂", 1, ".3g"),
    "seconds_to_make": ("s to make", 1, ".1f"),
    "seconds_per_1000": ("s / 1,000 images", 1, ".3g"),
    "epsilon_half": ("ε50% of align", 1, ".4g"),
    "alpha_delta_x": ("ᾱ of align", 1, ".3f"),
}
_LEGEND = (
    "Cosine: with the exact Δx, or where none is known with the projection's Δ̂x, mean and standard deviation over test "
    "images. Success: share of the images x + Δ̂x that a judge, a classifier, puts into the class moved to. Seconds of "
    "processor time: to make the estimator, training and compiling included, and for 1,000 images afterwards. The last "
    "two: PGD L∞ and alignment with the exact Δx of a classifier trained with the estimator, in the few steps of "
    "launch/deltax.py --align."
)


def scored(runs: Sequence[Run]) -> list[Run]:
    """Return the runs of launch/deltax.py, in the order of the paper's data sets."""
    order = list(DATASET_NAMES)
    found = [run for run in runs if run.task == "deltax"]
    return sorted(found, key=lambda run: order.index(run.dataset) if run.dataset in order else len(order))


def estimators(runs: Sequence[Run]) -> Table:
    """Build the table, one row for each estimator of each run; columns that no run has are left out."""
    found = scored(runs)
    lines = [(run, line) for run in found for line in run.result.get("estimators") or ()]
    kept = [name for name in _SCORES if any(line.get(name) is not None for _, line in lines)]
    several = len({run.dataset for run in found}) < len(found)
    rows = []
    for run, line in lines:
        label = f"{DATASET_NAMES.get(run.dataset, run.dataset)} · {line['estimator']}"
        rows.append(Row((run.dataset, line["estimator"]), label, _note(run, line, several), _cells(line, kept)))
    return Table(
        "estimators",
        "Estimators · Δ̂x, scored",
        ("dataset", "estimator"),
        tuple(kept),
        tuple(_SCORES[name][0] for name in kept),
        tuple(rows),
        _LEGEND,
    )


def _note(run: Run, line: Mapping[str, Any], several: bool) -> str:
    """Return the number of images beside a run's first row, and its directory where several runs share a data set."""
    if line is not run.result["estimators"][0]:
        return ""
    images = run.result.get("images")
    words = [f"{images:,} test images"] if images else []
    return "; ".join(words + [str(run.path)] * several)


def _cells(line: Mapping[str, Any], kept: Sequence[str]) -> tuple[Cell, ...]:
    """Return one run's scores, without a deviation or a number of runs."""
    values = [(line.get(name), *_SCORES[name][1:]) for name in kept]
    return tuple(
        Cell(text="–")
        if value is None
        else Cell((factor * value,), text=format(factor * value, form).replace("-", "−"))
        for value, factor, form in values
    )
