"""Figures of images: 4-6 and S1-S6, from the pictures.npz of runs."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from gradalign_jax import paper
from gradalign_jax.paper import DATASET_NAMES, METHOD_NAMES
from gradalign_jax.report.arrays import read_pictures
from gradalign_jax.report.differences import work_order
from gradalign_jax.report.groups import longest_trained
from gradalign_jax.report.style import Figure, Inputs, Palette
from gradalign_jax.report.text import as_mathtext

_COLUMNS = 5  # images of each class in Figures S1-S4


def _as_image(values: np.ndarray) -> np.ndarray:
    """Return an image `[H, W, C]`; a vector of Spheres is laid out as in attacks, another one as a row."""
    if values.ndim != 1:
        return values
    shape = (*paper.SPHERES_SHAPE, 1) if values.size == np.prod(paper.SPHERES_SHAPE) else (1, values.size, 1)
    return values.reshape(shape)


def show(axis: plt.Axes, values: np.ndarray, is_difference: bool, row: int, column: int) -> None:
    """Draw an image of [-1, 1], or a signed vector scaled to its own largest value, into one cell of the axes."""
    signed = is_difference or np.ndim(values) == 1
    values = _as_image(np.asarray(values, np.float32))
    limit = max(float(np.abs(values).max()), 1e-30) if signed else 1.0
    height, width = (0.47 * side / max(values.shape[:2]) for side in values.shape[:2])
    place = {"extent": (column - width, column + width, row + height, row - height), "interpolation": "nearest"}
    if values.shape[-1] == 3:
        axis.imshow(np.clip(values / limit / 2 + 0.5, 0, 1), **place)
    else:
        axis.imshow(values[..., 0], cmap="RdBu_r" if signed else "gray", vmin=-limit, vmax=limit, **place)


Cell = tuple[np.ndarray | None, bool, str]  # an image, whether it is a difference, and a title


def grid(lines: Sequence[Sequence[Cell]], titles: Sequence[str], names: Sequence[str], inches: float = 1.1):
    """Draw lines of images; cells without a finite image stay empty, and columns without any are left out."""
    lines = [[cell if cell[0] is not None and np.isfinite(cell[0]).all() else (None, False, "") for cell in line]
             for line in lines]  # fmt: skip
    kept = [j for j in range(len(lines[0])) if any(line[j][0] is not None for line in lines)]
    if not kept:
        return None
    lines, titles = [[line[j] for j in kept] for line in lines], [titles[j] for j in kept] if titles else ()
    columns, space = len(kept), 0.16 * any(cell[2] for line in lines for cell in line)  # below each cell's title
    size = (inches * columns + 0.8, inches * (1 + space) * len(lines) + 0.3)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    for i, line in enumerate(lines):
        for j, (image, is_difference, title) in enumerate(line):
            if image is not None:
                show(axis, image, is_difference, i * (1 + space), j)
                axis.text(j, i * (1 + space) - 0.49, as_mathtext(title), ha="center", va="bottom", fontsize=7)
    rows = [i * (1 + space) for i in range(len(names))]
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(len(lines) * (1 + space) - 0.5 - space, -0.5 - space), aspect="equal")
    axis.set_xticks(range(len(titles)), map(as_mathtext, titles), fontsize=9)
    axis.set_yticks(rows, map(as_mathtext, names), fontsize=8.5)
    axis.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return figure


def _of_most_work(inputs: Inputs, task: str, dataset: str, needed: str) -> dict[str, np.ndarray] | None:
    """Return the pictures of the run that did most work, of the runs of a task on a data set that have them."""
    own = [run for run in inputs.runs if (run.task, run.dataset) == (task, dataset)]
    for run in sorted(own, key=lambda run: (work_order(run), run.seed, -run.written)):
        if (arrays := read_pictures(run, (needed,))) is not None:
            return arrays
    return None


def of_each_class(labels: np.ndarray, count: int) -> list[int]:
    """Return the positions of the first `count` images of each class."""
    return [int(i) for label in np.unique(labels) for i in np.flatnonzero(labels == label)[:count]]


def draw_direct(inputs: Inputs, palette: Palette):
    """Draw Figure 4: x, Δx where it is exact, Δ̂x and x̂′ of the direct method."""
    lines, names = [], []
    for dataset in ("spheres", "squares", "mnist35", "copd"):
        arrays = _of_most_work(inputs, "vrgan", dataset, "estimate")
        for i in of_each_class(arrays["label"], 1) if arrays else ():
            exact = arrays["delta_x"][i] if "delta_x" in arrays else None
            lines.append((arrays["image"][i], exact, arrays["estimate"][i]))
            names.append(DATASET_NAMES[dataset])
    return _estimates(lines, names)


def draw_indirect(inputs: Inputs, palette: Palette):
    """Draw Figure 5: the same by projection, to the nearest other class, on CIFAR-10 to a random one."""
    lines, names = [], []
    random = np.random.default_rng(0)
    for dataset in ("squares32", "mnist", "cifar10"):
        arrays = _of_most_work(inputs, "project", dataset, "projected")
        for i in of_each_class(arrays["label"], 1)[:2] if arrays else ():
            image, projected, label = arrays["image"][i], arrays["projected"][i], int(arrays["label"][i])
            distance = np.linalg.norm((image - projected).reshape(len(projected), -1), axis=1)
            others = [c for c in range(len(projected)) if c != label and np.isfinite(distance[c])]
            if not others:
                continue
            target = int(random.choice(others)) if dataset == "cifar10" else min(others, key=lambda c: distance[c])
            exact = arrays["delta_x"][i] if "delta_x" in arrays else None
            lines.append((image, exact, projected[target] - image))
            own, other = (paper.class_name(dataset, c) for c in (label, target))
            names.append(f"{DATASET_NAMES[dataset]}, {own} → {other}")
    return _estimates(lines, names)


def _estimates(lines: Sequence[tuple[np.ndarray, np.ndarray | None, np.ndarray]], names: Sequence[str]):
    """Draw lines of x, Δx, Δ̂x, x̂′ and x′ from the first three."""
    if not lines:
        return None
    cells = [
        [
            *((image, False, ""), (exact, True, ""), (estimate, True, "")),
            *((image + estimate, False, ""), (None if exact is None else image + exact, False, "")),
        ]
        for image, exact, estimate in lines
    ]
    return grid(cells, ("x", "Δx", "Δ̂x", "x̂′", "x′"), names)


def draw_gradients(inputs: Inputs, palette: Palette):
    """Draw Figure 6: ∇ℓ(x) of the same images after the three methods of training, with c̃(x) as titles."""
    lines, names = [], []
    for dataset in DATASET_NAMES:
        found = {}
        for method in METHOD_NAMES:
            members = longest_trained(inputs.classifiers, dataset, method)
            pictures = (read_pictures(member.run, ("gradient",)) for member in members)
            found[method] = next((arrays for arrays in pictures if arrays is not None), None)
        present = [arrays for arrays in found.values() if arrays is not None]
        for i in of_each_class(present[0]["label"], 1)[:2] if present else ():
            image = present[0]["image"][i]
            same = {
                method: arrays
                for method, arrays in found.items()
                if arrays is not None and i < len(arrays["image"]) and np.array_equal(arrays["image"][i], image)
            }
            delta_x = [arrays["delta_x"][i] for arrays in same.values() if "delta_x" in arrays]
            gradients = [_gradient_cell(same.get(method), i, dataset) for method in METHOD_NAMES]
            label = paper.class_name(dataset, int(present[0]["label"][i]))
            lines.append(((image, False, f"y = {label}"), *gradients, (delta_x[0] if delta_x else None, True, "")))
            names.append(DATASET_NAMES[dataset])
    if not lines:
        return None
    return grid(lines, ("x", *(f"∇ℓ, {name}" for name in METHOD_NAMES.values()), "Δx"), names)


def _gradient_cell(arrays: dict[str, np.ndarray] | None, i: int, dataset: str) -> Cell:
    if arrays is None:
        return None, True, ""
    target = f"c̃(x) = {paper.class_name(dataset, int(arrays['target'][i]))}" if "target" in arrays else ""
    return arrays["gradient"][i], True, target


def _samples(dataset: str, task: str, is_difference: bool):
    """Return a function that draws Figures S1-S4: a line of x above a line of x̂′ or Δ̂x."""

    def draw(inputs: Inputs, palette: Palette):
        arrays = _of_most_work(inputs, task, dataset, "estimate" if task == "vrgan" else "projected")
        if arrays is None or (task == "project" and arrays["projected"].shape[1] != 2):
            return None
        chosen = of_each_class(arrays["label"], _COLUMNS)[: 2 * _COLUMNS]
        image, label = arrays["image"][chosen], arrays["label"][chosen]
        estimate = arrays["projected"][chosen, 1 - label] - image if task == "project" else arrays["estimate"][chosen]
        above = [(x, False, "") for x in image]
        below = [(values, is_difference, "") for values in (estimate if is_difference else image + estimate)]
        return grid([above, below], (), ("x", "Δ̂x" if is_difference else "x̂′"), inches=1.0)

    return draw


def _all_classes(dataset: str):
    """Return a function that draws Figures S5 and S6: x, and its projections to every class."""

    def draw(inputs: Inputs, palette: Palette):
        arrays = _of_most_work(inputs, "project", dataset, "projected")
        if arrays is None:
            return None
        classes, lines, names = range(arrays["projected"].shape[1]), [], []
        before_penalty = arrays.get("projected_first", np.full_like(arrays["projected"], np.nan))
        for i in of_each_class(arrays["label"], 2)[:20]:
            lines.append([(arrays["image"][i], False, ""), *((arrays["projected"][i, c], False, "") for c in classes)])
            names.append(paper.class_name(dataset, int(arrays["label"][i])))
            if np.isfinite(before_penalty[i]).any():
                lines.append([(None, False, ""), *((before_penalty[i, c], False, "") for c in classes)])
                names.append("before the penalty")
        return grid(lines, ("x", *(paper.class_name(dataset, c) for c in classes)), names, inches=0.62)

    return draw


def _requires(task: str, datasets: Sequence[str]) -> str:
    return f"pictures.npz of a {task} run on {' or '.join(datasets)}"


_SUPPLEMENT = (
    ("figureS1", "Figure S1", "squares", "vrgan", False),
    ("figureS2", "Figure S2", "squares32", "project", False),
    ("figureS3", "Figure S3", "mnist35", "vrgan", False),
    ("figureS4", "Figure S4", "copd", "vrgan", True),
)
FIGURES_4_TO_6 = (
    Figure(
        "figure4",
        "Figure 4 · Δ̂x, direct",
        "Estimates Δ̂x of the direct method (VR-GAN) and x̂′ = x + Δ̂x for one test image of each class. Differences are "
        "scaled to their own largest value, red positive. Spheres' 500 coordinates are laid out as 20 × 25.",
        draw_direct,
        _requires("vrgan", ("spheres", "squares", "mnist35")),
    ),
    Figure(
        "figure5",
        "Figure 5 · Δ̂x, indirect",
        "x̂′ = G(z*, c), the projection of x to another class of the conditional GAN, and Δ̂x = x̂′ − x. The class is "
        "the nearest other one, on CIFAR-10 a random one.",
        draw_indirect,
        _requires("project", ("squares32", "mnist", "cifar10")),
    ),
    Figure(
        "figure6",
        "Figure 6 · Input gradients by method of training",
        "∇ℓ(x) for one test image of each class, scaled to its own largest value, red positive. Titles: the class y of "
        "x and the closest other class c̃(x) of each classifier. Right: the Δx of the measured alignment.",
        draw_gradients,
        "any classifier run",
    ),
)
FIGURES_S1_TO_S6 = (
    *(
        Figure(
            name,
            f"{number} · {DATASET_NAMES[dataset]}",
            f"Above x, below {'Δ̂x' if is_difference else 'x̂′'}; up to {_COLUMNS} test images of each class.",
            _samples(dataset, task, is_difference),
            _requires(task, (dataset,)),
        )
        for name, number, dataset, task, is_difference in _SUPPLEMENT
    ),
    *(
        Figure(
            name,
            f"{number} · {DATASET_NAMES[dataset]}",
            "Left x, then its projections to every class, up to two images of each class. Below, where a run has them: "
            "the projections after the first steps (600 in the paper), before those with the penalty (A.3).",
            _all_classes(dataset),
            _requires("project", (dataset,)),
        )
        for name, number, dataset in (("figureS5", "Figure S5", "mnist"), ("figureS6", "Figure S6", "cifar10"))
    ),
)
