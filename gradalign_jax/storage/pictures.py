"""Pictures of a run: error over ε, input gradients beside their images, and rows of images.

They look alike for every user: neither a matplotlibrc nor a notebook's backend has an effect. Matplotlib, a
third of a run's imports, is imported when the first picture is drawn.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from gradalign_jax.errors import first_line
from gradalign_jax.paper import SPHERES_SHAPE
from gradalign_jax.storage.atomic import write_atomically


@contextmanager
def optional() -> Iterator[None]:
    """Log errors in the context instead of raising them: no result may be lost to a picture."""
    try:
        yield
    except Exception as error:
        logging.warning("a picture could not be drawn, the result is not affected: %s", first_line(error))


@contextmanager
def _panels(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[np.ndarray]:
    """Yield the axes `[rows, columns]` of a figure of `size` inches, and write it.

    Raises:
      RunError: if the file cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.subplots(rows, columns, squeeze=False)
        content = io.BytesIO()
        figure.savefig(content, dpi=150, format="png")
    write_atomically(path, content.getvalue())


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write the arrays behind a picture as a compressed npz file.

    Raises:
      RunError: if the file cannot be written.
    """
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())


def draw_curves(path: Path, curves: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the error rate over ε, one panel per attack, with the threshold that defines ε50%."""
    with _panels(path, 1, len(curves), (4 * len(curves), 3)) as axes:
        for axis, (name, curve) in zip(axes[0], curves.items(), strict=True):
            epsilons = np.asarray(curve["epsilons"])
            axis.plot(epsilons, curve["errors"], "o-", markersize=4)
            axis.axhline(curve["threshold"], color="gray", linewidth=0.8, linestyle="--")
            smallest = float(epsilons[epsilons > 0].min())
            axis.set_xscale("symlog", linthresh=smallest)
            axis.set(xlabel="ε", ylabel="error rate", xlim=(-smallest / 4, None), ylim=(-0.02, 1.02), title=name)
            axis.grid(alpha=0.3)


def _picture(image: np.ndarray) -> np.ndarray:
    return image.reshape(*SPHERES_SHAPE, 1) if image.ndim == 1 else image


def draw_gradients(path: Path, image: Any, gradient: Any, delta_x: Any | None) -> None:
    """Draw rows of x, ∇ℓ(x) and, unless it is None, Δx."""
    estimate = {} if delta_x is None else {"Δx": delta_x}
    draw_rows(path, {"x": image}, {"∇ℓ(x)": gradient, **estimate})


def draw_rows(
    path: Path, images: Mapping[str, Any], vectors: Mapping[str, Any], order: Sequence[str] | None = None
) -> None:
    """Draw one labeled row of pictures for each entry `[N, ...]`, one column per example.

    Args:
      path: the PNG file.
      images: shown in [-1, 1].
      vectors: each scaled to the full range of the color map, as are rows of Spheres.
      order: names of the rows from top to bottom; by default images, then vectors.
    """
    rows = {**images, **vectors}
    rows = {name: np.asarray(rows[name], np.float32) for name in order or rows}
    columns = max(map(len, rows.values()))
    with _panels(path, len(rows), columns, (1.4 * columns, 1.5 * len(rows))) as axes:
        for line, (name, values) in zip(axes, rows.items(), strict=True):
            line[0].set_ylabel(name)
            for axis, value in zip(line, values, strict=True):
                axis.set(xticks=[], yticks=[])
                picture = _picture(value)
                limit = 1.0 if name in images and value.ndim > 1 else max(float(np.abs(picture).max()), 1e-30)
                if picture.shape[-1] == 3:
                    axis.imshow(np.clip(picture / limit / 2 + 0.5, 0, 1))
                else:
                    colors = "gray" if name in images else "RdBu_r"
                    axis.imshow(picture[..., 0], cmap=colors, vmin=-limit, vmax=limit)


def draw_projections(path: Path, image: Any, projected: Any, label: Any) -> None:
    """Draw one row per image: x `[N, ...]` with its class, then its projection onto each class `[N, K, ...]`."""
    pictures = np.concatenate([np.asarray(image)[:, None], np.asarray(projected)], axis=1).clip(-1, 1) / 2 + 0.5
    rows, columns = pictures.shape[:2]
    with _panels(path, rows, columns, (0.9 * columns, 0.95 * rows)) as axes:
        for line, row, own in zip(axes, pictures, np.asarray(label), strict=True):
            line[0].set_ylabel(int(own))
            for axis, picture in zip(line, row, strict=True):
                axis.set(xticks=[], yticks=[])
                axis.imshow(np.broadcast_to(picture, (*picture.shape[:2], 3)))
        for axis, title in zip(axes[0], ("x", *range(columns - 1)), strict=True):
            axis.set_title(title)


def draw_mosaic(path: Path, rows: Any, gap: int = 2) -> None:
    """Draw images `[rows, columns, H, W, C]` in [-1, 1] pixel by pixel, `gap` white pixels apart."""
    from matplotlib import image as raster

    rows = np.pad(np.asarray(rows, np.float32), ((0, 0), (0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=1)
    height, width = rows.shape[0] * rows.shape[2], rows.shape[1] * rows.shape[3]
    mosaic = rows.transpose(0, 2, 1, 3, 4).reshape(height, width, rows.shape[-1])
    mosaic = np.broadcast_to(mosaic, (height, width, 3))[gap:, gap:]
    content = io.BytesIO()
    raster.imsave(content, np.clip(mosaic / 2 + 0.5, 0, 1), format="png")
    write_atomically(path, content.getvalue())
