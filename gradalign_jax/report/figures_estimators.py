"""Figure of estimators: Δ̂x of each one for the same images, side by side, from runs of launch/deltax.py."""

from gradalign_jax import paper
from gradalign_jax.paper import DATASET_NAMES
from gradalign_jax.report.arrays import read_pictures
from gradalign_jax.report.figures_images import grid, of_each_class
from gradalign_jax.report.style import Figure, Inputs, Palette
from gradalign_jax.report.tables_estimators import scored

_IMAGES = 2  # of a run
_PREFIX = "delta_x_"


def draw(inputs: Inputs, palette: Palette):
    """Draw a column for each image: x, then Δ̂x of every estimator of any run."""
    columns, titles, classes = [], [], []
    for run in scored(inputs.runs):
        arrays = read_pictures(run)
        for i in of_each_class(arrays["label"], 1)[:_IMAGES] if arrays else ():
            columns.append({name.removeprefix(_PREFIX): a[i] for name, a in arrays.items() if name.startswith(_PREFIX)})
            columns[-1][""] = arrays["image"][i]
            titles.append(DATASET_NAMES.get(run.dataset, run.dataset))
            moved = [arrays[name][i] for name in ("label", "target") if name in arrays]
            classes.append(" → ".join(paper.class_name(run.dataset, int(c)) for c in moved))
    if not columns:
        return None
    estimators = list(dict.fromkeys(name for column in columns for name in column if name))
    lines = [[(column[""], False, name) for column, name in zip(columns, classes, strict=True)]]
    lines += [[(column.get(name), True, "") for column in columns] for name in estimators]
    return grid(lines, titles, ("x", *estimators), inches=0.8)


ESTIMATORS = Figure(
    "estimators",
    "Estimators · Δ̂x of each one, side by side",
    "Δ̂x of every estimator for the same test images, each scaled to its own largest value, red positive; above, the "
    "image x, its class and the class moved to. Spheres' 500 coordinates are laid out as 20 × 25.",
    draw,
    "result.json and pictures.npz by launch/deltax.py",
)
