"""Table S1: sizes of the data sets, settings of training, and hours of each stage."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gradalign_jax import paper
from gradalign_jax.paper import DATASET_NAMES, METHOD_NAMES
from gradalign_jax.report.arrays import read_images_table, read_pictures
from gradalign_jax.report.cells import Cell, Row, Table
from gradalign_jax.report.groups import most_complete
from gradalign_jax.report.runs import Run

_SPLITS = ("train", "validation", "test")
_LABELS = {
    **{split: f"{split} images" for split in _SPLITS},
    "dimensions": "dimensions",
    **{f"minus_{split}": f"class −1, {split} %" for split in _SPLITS},
    "epsilon": "PGD ε for training",
    "step_size": "PGD η",
    "epochs": "epochs",
    "align": "λ_α",
    "penalty": "λ_Regz",
    "batch_size": "batch size",
}
# Settings by the config key and the runs that have it.
_SETTINGS = {
    "epsilon": ("attack.epsilon", "classifier", "pgd"),
    "step_size": ("attack.step_size", "classifier", None),
    "epochs": ("train.epochs", "classifier", None),
    "align": ("align.weight", "classifier", "align"),
    "penalty": ("project.penalty", "project", None),
    "batch_size": ("train.batch_size", "classifier", None),
}
_STAGES = {
    "baseline": "hours, baseline",
    "generator": "hours, GAN",
    "align": "hours, L_α",
    "pgd": "hours, PGD",
    "square": "hours, Square Attack",
}


def _of(runs: Sequence[Run], task: str, method: str | None) -> list[Run]:
    """Return the comparable runs of a task, and of a method, that did most work."""
    own = [run for run in runs if run.task == task and method in (None, run.result.get("method"))]
    if method == "pgd":  # the paper's ε before those of Table 3
        wanted = paper.EPSILON.get(own[0].dataset) if own else None
        own = [run for run in own if run.setting("attack.epsilon") == wanted] or own
    return most_complete(own)


def _size(runs: Sequence[Run], split: str) -> int | None:
    """Return the number of images of a split: as recorded, or for the test split as attacked in full."""
    for run in runs:
        recorded = ((run.result.get("splits") or {}).get(split) or {}).get("images")
        if recorded is not None and not run.setting("data.limit"):
            return int(recorded)
    for run in runs:
        partial = run.setting("evaluate.images") or run.setting("data.limit")
        curve = (run.result.get("curves") or {}).get("pgd_linf") or {}
        if split == "test" and curve.get("images") and not partial:
            return curve["images"]
    return None


def _shape(runs: Sequence[Run]) -> tuple[int, ...] | None:
    for run in runs:
        if run.result.get("shape"):
            return tuple(run.result["shape"])
    for run in runs:
        if (arrays := read_pictures(run)) is not None:
            return arrays["image"].shape[1:]
    return None


def _share(runs: Sequence[Run], split: str) -> float | None:
    """Return the share of class −1 in a split: as recorded, or for the test split from a full images.csv."""
    for run in runs:
        recorded = ((run.result.get("splits") or {}).get(split) or {}).get("share_of_class_0")
        if recorded is not None and not run.setting("data.limit"):
            return recorded
    for run in runs:
        partial = run.setting("evaluate.images") or run.setting("data.limit")
        images = read_images_table(run) if split == "test" and run.task == "evaluate" and not partial else None
        if images is not None:
            return float(np.mean(images["ground_truth_class"] == 0))
    return None


def _setup_cell(name: str, runs: Sequence[Run], printed: paper.Number | None) -> Cell:
    if name in _SETTINGS:
        key, task, method = _SETTINGS[name]
        found = _of(runs, task, method)
        value = found[0].setting(key) if found else None
        return _shown(value, None if value is None else f"{value:g}", printed)
    if name == "dimensions":
        shape = _shape(runs)
        sides = shape[:-1] if shape and len(shape) == 3 and shape[-1] == 1 else shape
        return _shown(math.prod(shape) if shape else None, "×".join(map(str, sides or ())), printed)
    split = name.removeprefix("minus_")
    if name.startswith("minus_"):
        share = _share(runs, split) if printed else None  # of binary data sets
        return _shown(None if share is None else 100 * share, None if share is None else f"{100 * share:.1f}%", printed)
    size = _size(runs, split)
    return _shown(size, None if size is None else f"{size:,}", printed)


def _shown(value: float | None, text: str | None, printed: paper.Number | None) -> Cell:
    if value is None:
        return Cell((), printed, text=None if printed else "–")
    return Cell((float(value),), printed, text=text)


def _hours(runs: Sequence[Run], stage: str) -> tuple[float, ...]:
    """Return the hours of a stage's runs that did most work."""
    timed = [run for run in runs if run.result.get("seconds") is not None]
    if stage == "generator":
        found = most_complete(run for run in timed if run.task in ("vrgan", "gan"))
    elif stage in METHOD_NAMES:
        found = _of(timed, "classifier", stage)
    else:
        found = [run for run in timed if run.task == "evaluate" and run.setting("evaluate.square_queries")]
        found = [run for run in found if not run.setting("evaluate.cw_images")] or found
        found = [run for method in METHOD_NAMES for run in _of(found, "evaluate", method)]
    return tuple(run.result["seconds"] / 3600 for run in found)


def _hours_cell(runs: Sequence[Run], stage: str, printed: paper.Number | None) -> Cell:
    hours = _hours(runs, stage)
    return Cell(hours, printed, text=None if hours or printed else "–")


def table_s1(runs: Sequence[Run]) -> Table:
    """Build Table S1, properties in rows and data sets in columns as the paper has it."""
    by_dataset: Mapping[str, list[Run]] = {
        dataset: [run for run in runs if run.dataset == dataset] for dataset in paper.S1_DATASETS
    }
    rows = []
    for name, label in _LABELS.items():
        printed = paper.TABLE_S1_SETUP[name]
        cells = tuple(_setup_cell(name, own, printed.get(dataset)) for dataset, own in by_dataset.items())
        rows.append(Row((name,), label, "", cells))
    for stage, label in _STAGES.items():
        cells = tuple(_hours_cell(own, stage, paper.HOURS[dataset,].get(stage)) for dataset, own in by_dataset.items())
        rows.append(Row((f"hours_{stage}",), label, "", cells))
    return Table(
        "tableS1",
        "Table S1 · Data sets, settings and hours",
        ("property",),
        paper.S1_DATASETS,
        tuple(DATASET_NAMES[dataset] for dataset in paper.S1_DATASETS),
        tuple(rows),
        "Settings and hours are those of the runs that did most work; sizes and shares those of whole splits, where "
        "runs record them. Hours (number of runs): on the devices listed under Runs, tests included, not comparable "
        "with the paper's where lengths differ; Square Attack: an evaluation with PGD, where possible without Carlini "
        "and Wagner's attack. Paper: averages on a Titan V, Titan RTX or V100. For Spheres the paper prints 10,000,000 "
        "samples an epoch, its code draws 500,000. Class −1 is label 0.",
    )
