"""Figures of images: 4-6 and S1-S6, from the pictures.npz that runs leave.

A classifier's holds `image`, `label`, `target`, `gradient` and, where a Δx measured it, `delta_x`, [N, ...] each. A
vrgan run's holds `image`, `label`, `estimate` (Δ̂x) and, where it is known, `delta_x`; a project run's `image`,
`label` and `projected` (x̂′ of every class, [N, K, ...]) and, where it is known, `delta_x`.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from gradalign_jax.report.departures import best_first
from gradalign_jax.report.groups import longest
from gradalign_jax.report.ink import Figure, Ink, Material, symbols
from gradalign_jax.report.tables import METHODS, NAMES

_SPHERES = (20, 25, 1)  # the layout of its 500 coordinates under attacks


def load(folder: Path) -> dict[str, np.ndarray] | None:
    """A run's pictures.npz, or None where there is none that can be read."""
    try:
        with np.load(folder / "pictures.npz") as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _show(axis: plt.Axes, values: np.ndarray, difference: bool, row: int, column: int) -> None:
    """Puts an image of [-1, 1], or a signed vector scaled to its own largest value, into one cell of the axes."""
    values = np.asarray(values, np.float32)
    if flat := values.ndim == 1:
        values = values.reshape(_SPHERES)
    limit = max(float(np.abs(values).max()), 1e-30) if difference or flat else 1.0
    height, width = (0.47 * side / max(values.shape[:2]) for side in values.shape[:2])
    place = {"extent": (column - width, column + width, row + height, row - height), "interpolation": "nearest"}
    if values.shape[-1] == 3:
        axis.imshow(np.clip(values / limit / 2 + 0.5, 0, 1), **place)
    else:
        shades = "RdBu_r" if difference or flat else "gray"
        axis.imshow(values[..., 0], cmap=shades, vmin=-limit, vmax=limit, **place)


def _grid(lines: Sequence[Sequence[tuple[np.ndarray | None, bool]]], titles, names, inches: float = 1.1):
    """Lines of (image, whether it is a difference); None leaves a cell empty, and a whole column of it out."""
    kept = [j for j in range(len(lines[0])) if any(line[j][0] is not None for line in lines)]
    lines, titles = [[line[j] for j in kept] for line in lines], [titles[j] for j in kept] if titles else ()
    columns = len(kept)
    figure, axis = plt.subplots(figsize=(inches * columns + 0.8, inches * len(lines) + 0.3), layout="constrained")
    for i, line in enumerate(lines):
        for j, (image, difference) in enumerate(line):
            if image is not None:
                _show(axis, image, difference, i, j)
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(len(lines) - 0.5, -0.5), aspect="equal")
    axis.set_xticks(range(len(titles)), map(symbols, titles), fontsize=9)
    axis.set_yticks(range(len(names)), map(symbols, names), fontsize=8.5)
    axis.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return figure


def _first(material: Material, task: str, dataset: str, needs: str) -> dict[str, np.ndarray] | None:
    """Pictures of the run of a task on a data set that did most, of those that have them."""
    mine = [run for run in material.runs if (run.task, run.dataset) == (task, dataset)]
    for run in sorted(mine, key=lambda run: (best_first(run), run.seed, -run.written)):
        found = load(run.path)
        if found is not None and {"image", "label", needs} <= set(found):
            return found
    return None


def _one_a_class(labels: np.ndarray, each: int) -> list[int]:
    return [int(i) for label in np.unique(labels) for i in np.flatnonzero(labels == label)[:each]]


def draw_direct(material: Material, ink: Ink):
    """Figure 4: x, Δx where it is known, Δ̂x and x̂′ of the direct method."""
    lines, names = [], []
    for dataset in ("spheres", "squares", "mnist35", "copd"):
        found = _first(material, "vrgan", dataset, "estimate")
        for i in _one_a_class(found["label"], 1) if found else ():
            image, estimate = found["image"][i], found["estimate"][i]
            exact = found["delta_x"][i] if "delta_x" in found else None
            lines.append((image, exact, estimate, image + estimate, None if exact is None else image + exact))
            names.append(NAMES[dataset])
    return _estimates(lines, names)


def draw_indirect(material: Material, ink: Ink):
    """Figure 5: the same by projection, towards one other class."""
    lines, names = [], []
    for dataset in ("squares32", "mnist", "cifar10"):
        found = _first(material, "project", dataset, "projected")
        for i in _one_a_class(found["label"], 1)[:2] if found else ():
            image, projected = found["image"][i], found["projected"][i]
            distance = [np.linalg.norm(image - other) for other in projected]
            distance[int(found["label"][i])] = np.inf
            nearest = projected[int(np.argmin(distance))]
            exact = found["delta_x"][i] if "delta_x" in found else None
            lines.append((image, exact, nearest - image, nearest, None if exact is None else image + exact))
            names.append(NAMES[dataset])
    return _estimates(lines, names)


def _estimates(lines, names):
    if not lines:
        return None
    differences = (False, True, True, False, False)
    cells = [list(zip(line, differences, strict=True)) for line in lines]
    return _grid(cells, ("x", "Δx", "Δ̂x", "x̂′", "x′"), names)


def draw_gradients(material: Material, ink: Ink):
    """Figure 6: ∇ℓ(x) of one image by the three methods."""
    lines, names = [], []
    for dataset in NAMES:
        found = {
            m: next(filter(None, (load(c.run.path) for c in longest(material.classifiers, dataset, m))), None)
            for m in METHODS
        }
        present = [f for f in found.values() if f is not None and {"image", "gradient", "label"} <= set(f)]
        for i in _one_a_class(present[0]["label"], 1)[:2] if present else ():
            image = present[0]["image"][i]
            same = {
                m: f for m, f in found.items() if f and i < len(f["image"]) and np.array_equal(f["image"][i], image)
            }
            known = [f["delta_x"][i] for f in same.values() if "delta_x" in f]
            gradients = [same[m]["gradient"][i] if m in same else None for m in METHODS]
            lines.append((image, *gradients, known[0] if known else None))
            names.append(NAMES[dataset])
    if not lines:
        return None
    cells = [[(image, j > 0) for j, image in enumerate(line)] for line in lines]
    return _grid(cells, ("x", *(f"∇ℓ, {METHODS[m]}" for m in METHODS), "Δx"), names)


def _samples(dataset: str, task: str, difference: bool = False):
    """S1-S4: a line of x above a line of x̂′ (or Δ̂x), five of each class."""

    def draw(material: Material, ink: Ink):
        found = _first(material, task, dataset, "estimate" if task == "vrgan" else "projected")
        if found is None:
            return None
        chosen = _one_a_class(found["label"], 5)[:10]
        below = []
        for i in chosen:
            if task == "project":
                estimate = found["projected"][i, 1 - int(found["label"][i])] - found["image"][i]
            else:
                estimate = found["estimate"][i]
            below.append(estimate if difference else found["image"][i] + estimate)
        above = [(found["image"][i], False) for i in chosen]
        lines = [above, [(image, difference) for image in below]]
        return _grid(lines, (), ("x", "Δ̂x" if difference else "x̂′"), inches=1.0)

    return draw


def _all_classes(dataset: str):
    """S5, S6: x, and its projections onto every class."""

    def draw(material: Material, ink: Ink):
        found = _first(material, "project", dataset, "projected")
        if found is None:
            return None
        chosen = _one_a_class(found["label"], 2)[:20]
        classes = range(found["projected"].shape[1])
        lines = [[(found["image"][i], False), *((found["projected"][i, c], False) for c in classes)] for i in chosen]
        names = [str(int(found["label"][i])) for i in chosen]
        return _grid(lines, ("x", *map(str, classes)), names, inches=0.62)

    return draw


def _takes(task: str, datasets: Mapping | Sequence[str]) -> str:
    return f"pictures.npz of a {task} run on {' or '.join(datasets)}"


_DIRECT = (
    "Estimates Δ̂x of the direct method (VR-GAN), x̂′ = x + Δ̂x, one test image of each class; differences are scaled "
)
_DIRECT += "to their own largest value, red upwards. Spheres' 500 coordinates are laid out as 20 × 25."
FIGURES_4_TO_6 = (
    Figure(
        "figure4", "Figure 4 · Δ̂x, direct", _DIRECT, draw_direct, _takes("vrgan", ("spheres", "squares", "mnist35"))
    ),
    Figure(
        "figure5",
        "Figure 5 · Δ̂x, indirect",
        "x, and its projection onto the conditional GAN's manifold of the nearest other class, x̂′ = G(z*, c).",
        draw_indirect,
        _takes("project", ("squares32", "mnist", "cifar10")),
    ),
    Figure(
        "figure6",
        "Figure 6 · Input gradients by method of training",
        "∇ℓ(x) for one test image a class, scaled to its own largest value, red upwards; last the Δx that measured it.",
        draw_gradients,
        "any classifier run",
    ),
)
_S = (
    ("figureS1", "Figure S1", "squares", "vrgan", False),
    ("figureS2", "Figure S2", "squares32", "project", False),
    ("figureS3", "Figure S3", "mnist35", "vrgan", False),
    ("figureS4", "Figure S4", "copd", "vrgan", True),
)
FIGURES_S1_TO_S6 = (
    *(
        Figure(
            name,
            f"{number} · {NAMES[dataset]}",
            f"Above x, below {'Δ̂x' if difference else 'x̂′'}; up to five test images of each class.",
            _samples(dataset, task, difference),
            _takes(task, (dataset,)),
        )
        for name, number, dataset, task, difference in _S
    ),
    *(
        Figure(
            name,
            f"{number} · {NAMES[dataset]}",
            "Left x, then its projection onto every class; up to two lines a class of x.",
            _all_classes(dataset),
            _takes("project", (dataset,)),
        )
        for name, number, dataset in (("figureS5", "Figure S5", "mnist"), ("figureS6", "Figure S6", "cifar10"))
    ),
)
