"""Pictures of a run: error over ε, input gradients beside the images they belong to, and rows of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

# Spheres has no picture; the attacks' and this layout of its 500 coordinates is the authors'.
_SPHERES_SHAPE = (20, 25, 1)


def draw_curves(path: Path, curves: Mapping[str, Mapping[str, Any]]) -> None:
    """Error rate over ε, one panel an attack, with the threshold that ε50% crosses."""
    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3), layout="constrained", squeeze=False)
    for axis, (name, curve) in zip(axes[0], curves.items(), strict=True):
        epsilons = np.asarray(curve["epsilons"])
        axis.plot(epsilons, curve["errors"], "o-", markersize=4)
        axis.axhline(curve["threshold"], color="grey", linewidth=0.8, linestyle="--")
        smallest = float(epsilons[epsilons > 0].min())
        axis.set_xscale("symlog", linthresh=smallest)
        axis.set(xlabel="ε", ylabel="error rate", xlim=(-smallest / 4, None), ylim=(-0.02, 1.02), title=name)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _picture(image: np.ndarray) -> np.ndarray:
    return image.reshape(_SPHERES_SHAPE) if image.ndim == 1 else image


def draw_gradients(path: Path, image: Any, gradient: Any, delta_x: Any | None) -> None:
    """Rows x, ∇ℓ(x) and, where it is known, Δx."""
    known = {} if delta_x is None else {"Δx": delta_x}
    draw_rows(path, {"x": image}, {"∇ℓ(x)": gradient, **known})


def draw_rows(
    path: Path, images: Mapping[str, Any], vectors: Mapping[str, Any], order: Sequence[str] | None = None
) -> None:
    """One labelled row `[N, ...]` of pictures each, a column an example.

    Images are shown in [-1, 1]; vectors, and rows of Spheres, are scaled one by one to the full range of the map.
    order: of the rows; by default images, then vectors.
    """
    rows = {**images, **vectors}
    rows = {name: np.asarray(rows[name], np.float32) for name in order or rows}
    columns = max(map(len, rows.values()))
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.4 * columns, 1.5 * len(rows)), layout="constrained", squeeze=False
    )
    for line, (name, values) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axis, value in zip(line, values, strict=True):
            axis.set(xticks=[], yticks=[])
            picture = _picture(value)
            limit = 1.0 if name in images and value.ndim > 1 else max(float(np.abs(picture).max()), 1e-30)
            if picture.shape[-1] == 3:
                axis.imshow(np.clip(picture / limit / 2 + 0.5, 0, 1))
            else:
                colours = "gray" if name in images else "RdBu_r"
                axis.imshow(picture[..., 0], cmap=colours, vmin=-limit, vmax=limit)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_projections(path: Path, image: Any, projected: Any, label: Any) -> None:
    """A row an image: x `[N, ...]` with its class, then what it was projected to in each class `[N, K, ...]`."""
    pictures = np.concatenate([np.asarray(image)[:, None], np.asarray(projected)], axis=1).clip(-1, 1) / 2 + 0.5
    rows, columns = pictures.shape[:2]
    figure, axes = plt.subplots(
        rows, columns, figsize=(0.9 * columns, 0.95 * rows), layout="constrained", squeeze=False
    )
    for line, row, own in zip(axes, pictures, np.asarray(label), strict=True):
        line[0].set_ylabel(int(own))
        for axis, picture in zip(line, row, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.imshow(np.broadcast_to(picture, (*picture.shape[:2], 3)))
    for axis, title in zip(axes[0], ("x", *range(columns - 1)), strict=True):
        axis.set_title(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_mosaic(path: Path, rows: Any, gap: int = 2) -> None:
    """Images `[rows, columns, H, W, C]` in [-1, 1] pixel by pixel, with gaps between them."""
    rows = np.pad(np.asarray(rows, np.float32), ((0, 0), (0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=1)
    height, width = rows.shape[0] * rows.shape[2], rows.shape[1] * rows.shape[3]
    mosaic = rows.transpose(0, 2, 1, 3, 4).reshape(height, width, rows.shape[-1])
    mosaic = np.broadcast_to(mosaic, (height, width, 3))[gap:, gap:]
    plt.imsave(path, np.clip(mosaic / 2 + 0.5, 0, 1))
