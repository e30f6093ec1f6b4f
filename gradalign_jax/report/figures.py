"""All figures of a report: PNG and PDF files, and a pair of PNGs for light and dark pages."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from gradalign_jax.report import (
    figures_curves,
    figures_directions,
    figures_estimators,
    figures_geometry,
    figures_images,
    page,
    style,
)
from gradalign_jax.report.page import Drawing
from gradalign_jax.report.results import Classifier
from gradalign_jax.report.runs import Run

FIGURES = (
    figures_curves.OVERVIEW,
    *figures_geometry.FIGURES_1_TO_3,
    *figures_images.FIGURES_4_TO_6,
    figures_curves.FIGURE_7,
    figures_directions.DIRECTIONS,
    figures_estimators.ESTIMATORS,
    *figures_images.FIGURES_S1_TO_S6,
    figures_curves.FIGURE_S7,
    figures_curves.FIGURE_S8,
)

_MARGIN = {"bbox_inches": "tight", "pad_inches": 0.08}  # the layout does not see the accents of a title


def draw_all(output: Path, runs: Sequence[Run], classifiers: Sequence[Classifier]) -> list[Drawing]:
    """Draw every figure that has data, and delete files of the others that an earlier report left.

    Args:
      output: directory of the files.
      runs: all runs.
      classifiers: all classifiers.

    Returns:
      The figures with their PNGs.
    """
    inputs = style.Inputs(runs, classifiers)
    drawings = []
    for figure in FIGURES:
        images = []
        for palette in (style.LIGHT, style.DARK):
            # From Matplotlib's defaults: a user's matplotlibrc may want LaTeX.
            with plt.style.context(["default", style.settings(palette)]):
                canvas = figure.draw(inputs, palette)
                if canvas is None:
                    images.append(None)
                    continue
                png = io.BytesIO()
                canvas.savefig(png, dpi=page.DPI, format="png", **_MARGIN)
                images.append(png.getvalue())
                if palette is style.LIGHT:
                    pdf = io.BytesIO()
                    canvas.savefig(pdf, format="pdf", **_MARGIN)
                    (output / f"{figure.name}.pdf").write_bytes(pdf.getvalue())
                plt.close(canvas)
        for kind in ("png", "pdf"):
            if images[0] is None:
                (output / f"{figure.name}.{kind}").unlink(missing_ok=True)
        if images[0] is not None:
            (output / f"{figure.name}.png").write_bytes(images[0])
        drawings.append(Drawing(figure, *images))
    return drawings
