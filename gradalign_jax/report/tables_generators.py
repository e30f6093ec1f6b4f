"""Tables of estimates of Δx: Table 1 and section 3.2."""

from collections.abc import Mapping, Sequence

import numpy as np

from gradalign_jax import paper
from gradalign_jax.paper import DATASET_NAMES
from gradalign_jax.report.arrays import read_pictures
from gradalign_jax.report.cells import Cell, Row, Table, cell
from gradalign_jax.report.differences import differences
from gradalign_jax.report.groups import most_complete
from gradalign_jax.report.runs import Run

_DIRECT = ("spheres", "squares", "mnist35", "copd")
_INDIRECT = ("squares32", "mnist", "cifar10")
_HOW = {"vrgan": "VR-GAN", "project": "conditional GAN, projected"}


def _note(runs: Sequence[Run], *words: str) -> str:
    return "; ".join([*words, *(differences(runs[0]) if runs else ())])


def _runs(runs: Sequence[Run], task: str, dataset: str) -> list[Run]:
    return most_complete(run for run in runs if (run.task, run.dataset) == (task, dataset))


def _by_class(run: Run, name: str) -> Mapping[str, float | None]:
    if name == "similarity":
        return run.result.get("similarity_by_class") or {}
    return (run.result.get("norms") or {}).get(name) or {}


def table_1(runs: Sequence[Run]) -> Table:
    """Build Table 1: norms of the direct method's estimates on Spheres."""
    own = _runs(runs, "vrgan", "spheres")
    rows = []
    for (label,), numbers in paper.TABLE_1.items():
        values = [[_by_class(run, name).get(label) for run in own] for name in paper.T1_COLUMNS]
        cells = [
            Cell(tuple(v for v in seeds if v is not None), numbers.get(name))
            for name, seeds in zip(paper.T1_COLUMNS, values, strict=True)
        ]
        rows.append(Row((label,), f"class {paper.class_name('spheres', int(label))}", _note(own), tuple(cells)))
    return Table(
        "table1",
        "Table 1 · Estimates on Spheres by the direct method",
        ("class",),
        paper.T1_COLUMNS,
        ("‖x‖₂", "‖Δ̂x‖₂", "‖x̂′‖₂", "‖x′‖₂", "sim(Δx, Δ̂x)"),
        tuple(rows),
        "Ours: mean over the test split ± standard deviation over seeds (number of seeds). Paper: one random sample of "
        "each class, so there is no z.",
    )


def similarities(runs: Sequence[Run]) -> Table:
    """Build the table of how well estimates align with the exact Δx (section 3.2)."""
    rows = []
    for dataset, printed in paper.SECTION_3_2.items():
        task = "project" if dataset in _INDIRECT else "vrgan"
        own = _runs(runs, task, dataset)
        found = [run.result.get("similarity") for run in own]
        values = [value.get("mean") if isinstance(value, Mapping) else value for value in found]
        rows.append(Row((dataset,), DATASET_NAMES[dataset], _note(own, _HOW[task]), (cell(values, printed),)))
    return Table(
        "section3.2", "Section 3.2 · Alignment of estimates with the exact Δx", ("dataset",), ("similarity",),
        ("sim(Δx, Δ̂x)",), tuple(rows), "As in Table 2.",
    )  # fmt: skip


def _pictured_norm(run: Run, own: int, other: int) -> float | None:
    """Return the mean ‖Δ̂x‖ of a project run's pictured images from one class to another."""
    arrays = read_pictures(run, ("projected",))
    if arrays is None or other >= arrays["projected"].shape[1]:
        return None
    rows = arrays["label"] == own
    if not rows.any():
        return None
    moved = np.asarray(arrays["projected"][rows, other] - arrays["image"][rows], np.float64)
    norms = np.linalg.norm(moved.reshape(len(moved), -1), axis=1)
    return float(norms.mean()) if np.isfinite(norms).all() else None


def norms(runs: Sequence[Run]) -> Table:
    """Build the table of ‖Δ̂x‖ between digits 3 and 5, direct beside indirect (section 3.2)."""
    direct, indirect = _runs(runs, "vrgan", "mnist35"), _runs(runs, "project", "mnist")
    rows = []
    for own, other, label in ((3, 5, "0"), (5, 3, "1")):
        pairs = (
            [_by_class(run, "delta").get(label) for run in direct],
            [_by_class(run, f"delta_to_{other}").get(str(own)) or _pictured_norm(run, own, other) for run in indirect],
        )
        note = "; ".join(f"{name}: {words}" for name, words in
                         (("VR-GAN", _note(direct)), ("projection", _note(indirect))) if words)  # fmt: skip
        rows.append(Row((f"{own}→{other}",), f"{own} → {other}", note, tuple(cell(v, None) for v in pairs)))
    return Table(
        "section3.2_norms", "Section 3.2 · ‖Δ̂x‖₂ between digits 3 and 5", ("classes",), ("mnist35", "mnist"),
        ("MNIST-3/5, direct", "MNIST, indirect"), tuple(rows),
        "Mean over test images (number of runs). The paper finds the indirect method's images slightly more distant. "
        "Indirect: the pictured images alone where a run has not recorded all norms.",
    )  # fmt: skip


def success(runs: Sequence[Run]) -> Table:
    """Build the table of how often x̂′ is classified as its destination class (section 3.2)."""
    rows = []
    for task, datasets in (("vrgan", _DIRECT), ("project", _INDIRECT)):
        for dataset in datasets:
            own = _runs(runs, task, dataset)
            note = _note(own, _HOW[task])
            name = DATASET_NAMES[dataset]
            if any(run.result.get("moved") is not None for run in own):
                rows.append(_success((dataset, "all"), f"{name} · all", note, [run.result.get("moved") for run in own]))
            by_class = [run.result.get("moved_by_destination") or {} for run in own]
            for label in sorted(
                {label for found in by_class for label in found}, key=lambda label: (len(label), label)
            ):
                text = paper.class_name(dataset, int(label)) if label.isdecimal() else label
                values = [found.get(label) for found in by_class]
                rows.append(_success((dataset, label), f"{name} · to {text}", note, values))
    return Table(
        "section3.2_success", "Section 3.2 · Success of x̂′ by destination class", ("dataset", "class"), ("success",),
        ("of its class %",), tuple(rows),
        "Share of test images whose x̂′ is classified as the destination class, by the VR-GAN's critic or the "
        "projection's classifier. The paper says that digits almost always succeed, and airplanes fail more often.",
    )  # fmt: skip


def _success(key: tuple[str, str], label: str, note: str, values: Sequence[float | None]) -> Row:
    return Row(key, label, note, (cell([None if v is None else 100 * v for v in values], None),))
