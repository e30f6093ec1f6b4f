"""Figure of directions: ᾱ of every gradient with every Δx as a matrix, pictures of both beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from gradalign_jax.paper import DATASET_NAMES, METHOD_NAMES
from gradalign_jax.report.arrays import read_pictures
from gradalign_jax.report.figures_images import show
from gradalign_jax.report.groups import longest_trained
from gradalign_jax.report.results import Classifier, measurement
from gradalign_jax.report.style import Figure, Inputs, Palette
from gradalign_jax.report.tables_directions import measured, ordered
from gradalign_jax.report.text import as_mathtext

# Inches of a cell; in cells: half of a picture's side, from row to row, and the space above a matrix.
_INCHES, _CELL, _ROW, _GAP = 0.95, 0.47, 1.16, 0.75


def draw(inputs: Inputs, palette: Palette):
    """Draw one matrix for each classifier, those of a data set side by side."""
    lines = [line for dataset in DATASET_NAMES if (line := _of_dataset(inputs.classifiers, dataset))]
    if not lines:
        return None
    shapes = [[_shape(member) for member in line] for line in lines]
    width = max(sum(columns + _GAP for _, columns in line) for line in shapes)
    height = sum(_ROW * max(rows for rows, _ in line) + _GAP for line in shapes)
    figure, axis = plt.subplots(figsize=(_INCHES * width + 0.6, _INCHES * height), layout="constrained")
    top = _GAP
    for line, sizes in zip(lines, shapes, strict=True):
        left = 0.0
        for member, (_, columns) in zip(line, sizes, strict=True):
            _draw_matrix(axis, member, left, top, palette)
            left += columns + _GAP
        top += _ROW * max(rows for rows, _ in sizes) + _GAP
    axis.set(xlim=(-_GAP, width - 0.5), ylim=(height - _GAP / 2, -0.2), aspect="equal")
    axis.set_axis_off()
    return figure


def _of_dataset(classifiers: Sequence[Classifier], dataset: str) -> list[Classifier]:
    """Return for each method the first classifier of its longest-trained group that has a matrix."""
    found = []
    for method in METHOD_NAMES:
        members = map(measured, longest_trained(classifiers, dataset, method, measured))
        found += [member for member in members if member and _table(member)][:1]
    return found


def _table(member: Classifier) -> Mapping[str, Mapping[str, Any]]:
    """Return ᾱ by gradient and Δx, the plain gradient first."""
    table = measurement(member)["directions"].get("alignment") or {}
    return {name: table[name] for name in ordered(table)}


def _names(member: Classifier) -> list[str]:
    """Return the names of the Δx."""
    return ordered(name for row in _table(member).values() for name in row)


def _shape(member: Classifier) -> tuple[int, int]:
    """Return the rows and columns of a matrix with its pictures."""
    return 1 + len(_table(member)), 1 + len(_names(member))


def _draw_matrix(axis: plt.Axes, member: Classifier, left: float, top: float, palette: Palette) -> None:
    """Draw a matrix whose upper left picture has its center at (left, top)."""
    source = next(iter(member.sources), member.run)
    arrays = read_pictures(source) or {}
    title = f"{DATASET_NAMES.get(member.run.dataset, member.run.dataset)} · {METHOD_NAMES[member.method]}"
    axis.text(left - _CELL, top - 0.74, title, fontsize=8.5, fontweight="bold", va="bottom", color=palette.text)
    _draw_picture(axis, arrays.get("image"), False, "x", left, top)
    for j, name in enumerate(_names(member), 1):
        _draw_picture(axis, arrays.get(f"delta_x_{name}"), True, f"Δx, {name}", left + j, top)
    for i, (gradient, row) in enumerate(_table(member).items(), 1):
        _draw_picture(axis, arrays.get(f"gradient_{gradient}"), True, f"∇, {gradient}", left, top + _ROW * i)
        for j, name in enumerate(_names(member), 1):
            _draw_number(axis, row.get(name), left + j, top + _ROW * i)


def _draw_picture(
    axis: plt.Axes, values: np.ndarray | None, is_difference: bool, name: str, left: float, top: float
) -> None:
    """Draw the first picture, if there is one, below its name."""
    axis.text(left, top - _CELL - 0.02, as_mathtext(name), ha="center", va="bottom", fontsize=6.5)
    if values is not None and np.isfinite(values[0]).all():
        show(axis, values[0], is_difference, top, left)


def _draw_number(axis: plt.Axes, alpha: float | None, left: float, top: float) -> None:
    """Draw ᾱ on its color, red positive."""
    if alpha is None:
        return
    color = plt.get_cmap("RdBu_r")((1 + alpha) / 2)
    axis.add_patch(Rectangle((left - _CELL, top - _CELL), 2 * _CELL, 2 * _CELL, color=color))
    ink = "white" if abs(alpha) > 0.6 else "#22262b"
    axis.text(left, top, f"{alpha:.3f}".replace("0.", "."), ha="center", va="center", fontsize=9, color=ink)


DIRECTIONS = Figure(
    "directions_matrix",
    "Directions · ᾱ of every gradient with every Δx",
    "Mean cosine over the test images, red positive; to the left and above, the gradients and the Δx of one of these "
    "images, each scaled to its own largest value.",
    draw,
    "an evaluation with config.evaluate.gradients",
)
