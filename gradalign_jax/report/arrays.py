"""Arrays that runs leave beside result.json: pictures.npz and images.csv.

A classifier's pictures.npz holds `image`, `label`, `target` (c̃), `gradient` and, where one measured it, `delta_x`,
`[N, ...]` each; where several gradients were measured, also `gradient_NAME` and `delta_x_NAME`. A vrgan run's holds
`image`, `label`, `estimate` (Δ̂x) and, where it is exact, `delta_x`. A project run's holds `image`, `label`, `projected`
(x̂′ of every class, `[N, K, ...]`, NaN where there is none), of some images the same before the steps with the penalty
(`projected_first`) and, where it is exact, `delta_x`. Those of launch/deltax.py hold `image`, `label`, `target` and
`delta_x_NAME` of each estimator.
"""

import csv
import io
import zipfile
from collections.abc import Iterable

import numpy as np

from gradalign_jax.report.runs import Run

_BY_CLASS = ("projected", "projected_first")


def read_pictures(run: Run, needed: Iterable[str] = ()) -> dict[str, np.ndarray] | None:
    """Read a run's pictures.npz.

    Args:
      run: the run.
      needed: arrays that must be there beside `image` and `label`.

    Returns:
      Its arrays, numbers of matching shapes; None where the file is missing, damaged or lacks an array.
    """
    if run.changed("pictures.npz"):
        return None
    try:
        with np.load(io.BytesIO((run.path / "pictures.npz").read_bytes()), allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError):
        return None
    if not {"image", "label", *needed} <= set(arrays):
        return None
    image, label = arrays["image"], arrays["label"]
    if label.ndim != 1 or image.shape[:1] != label.shape or 0 in image.shape:
        return None
    if not (image.ndim == 2 or (image.ndim == 4 and image.shape[-1] in (1, 3))):
        return None
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            return None
        shape = array.shape[:1] + array.shape[2:] if name in _BY_CLASS else array.shape
        vector = name in ("gradient", "delta_x", "estimate", *_BY_CLASS) or name.startswith(("gradient_", "delta_x_"))
        if vector and shape != image.shape:
            return None
        if name in ("label", "target") and (array.dtype.kind == "f" or array.shape != label.shape):
            return None
    if "projected" in arrays and not np.all((label >= 0) & (label < arrays["projected"].shape[1])):
        return None
    return arrays


def read_images_table(run: Run) -> dict[str, np.ndarray] | None:
    """Read a run's images.csv.

    Args:
      run: the run.

    Returns:
      Its columns as numbers `[N]`, NaN where a cell is empty; None where the file is missing or damaged.
    """
    if run.changed("images.csv"):
        return None
    try:
        text = (run.path / "images.csv").read_text(encoding="utf-8")
        names, *rows = csv.reader(io.StringIO(text))
        columns = [[float(cell) if cell else np.nan for cell in column] for column in zip(*rows, strict=True)]
        table = {name: np.asarray(column) for name, column in zip(names, columns, strict=True)}
    except (OSError, ValueError, csv.Error):
        return None
    return table if {"ground_truth_class", "predicted_class"} <= set(table) else None
