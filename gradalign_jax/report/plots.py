"""Draws every figure: PNG and PDF on disk, and a pair for light and dark pages."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from gradalign_jax.report import curves, ink, page, pictures
from gradalign_jax.report.page import Drawn
from gradalign_jax.report.results import Classifier
from gradalign_jax.report.runs import Run

FIGURES = (
    curves.OVERVIEW,
    *pictures.FIGURES_4_TO_6,
    curves.FIGURE_7,
    *pictures.FIGURES_S1_TO_S6,
    curves.FIGURE_S7,
    curves.FIGURE_S8,
)

_MARGIN = {"bbox_inches": "tight", "pad_inches": 0.08}  # the layout does not see how high a title's hats reach


def draw_all(output: Path, runs: Sequence[Run], found: Sequence[Classifier]) -> list[Drawn]:
    """Draws what can be drawn; a figure that cannot has no files, and those of an earlier report go."""
    material = ink.Material(runs, found)
    drawn = []
    for figure in FIGURES:
        images = []
        for colours in (ink.LIGHT, ink.DARK):
            with plt.rc_context(ink.style(colours)):
                canvas = figure.draw(material, colours)
                if canvas is None:
                    images.append(None)
                    continue
                png = io.BytesIO()
                canvas.savefig(png, dpi=page.DPI, format="png", **_MARGIN)
                images.append(png.getvalue())
                if colours is ink.LIGHT:
                    canvas.savefig(output / f"{figure.name}.pdf", **_MARGIN)
                plt.close(canvas)
        for kind in ("png", "pdf"):
            if images[0] is None:
                (output / f"{figure.name}.{kind}").unlink(missing_ok=True)
        if images[0] is not None:
            (output / f"{figure.name}.png").write_bytes(images[0])
        drawn.append(Drawn(figure, *images))
    return drawn
