"""How figures look, on light and on dark pages, and what a figure is."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

os.environ["MPLBACKEND"] = "Agg"  # a notebook's backend may be missing here; read when Matplotlib is imported
import matplotlib.pyplot as plt
from matplotlib import ticker

from gradalign_jax.report.results import Classifier
from gradalign_jax.report.runs import Run


class Palette(NamedTuple):
    """Colors of text, grid, page and the three methods."""

    text: str
    faint: str
    page: str
    baseline: str
    align: str
    pgd: str


LIGHT = Palette("#22262b", "#c9ced6", "#ffffff", "#6b7787", "#d97706", "#0f766e")
DARK = Palette("#e4e7eb", "#414853", "#15181d", "#9aa7b8", "#fbab4c", "#4fc3b5")


class Inputs(NamedTuple):
    """The data that figures are drawn from."""

    runs: Sequence[Run]
    classifiers: Sequence[Classifier]


class Figure(NamedTuple):
    """A figure of the report.

    Attributes:
        name: Name of its files.
        title: Heading.
        caption: Text below it.
        draw: Returns a Matplotlib figure, or None where nothing was measured.
        requires: The runs that it needs, in words.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Inputs, Palette], Any]
    requires: str


def settings(palette: Palette) -> dict[str, Any]:
    """Return Matplotlib's settings in the colors of a palette."""
    return {
        "figure.facecolor": palette.page,
        "savefig.facecolor": palette.page,
        "axes.facecolor": palette.page,
        "axes.edgecolor": palette.faint,
        "axes.labelcolor": palette.text,
        "axes.titlecolor": palette.text,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.labelsize": 8.5,
        "grid.color": palette.faint,
        "grid.alpha": 0.45,
        "grid.linewidth": 0.6,
        "text.color": palette.text,
        "xtick.color": palette.text,
        "ytick.color": palette.text,
        "xtick.labelsize": 7.5,
        "ytick.labelsize": 7.5,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.minor.size": 0,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.linewidth": 1.6,
        "lines.markersize": 4,
        "font.family": "DejaVu Sans",
    }


def few_ticks(axis: Any, low: float, high: float) -> None:
    """Set a logarithmic axis' ticks as plain numbers: at 1, or also at 2, 3 or 5 where those would be too few."""
    decades = math.log10(high / low)
    subdivisions = (1,) if decades > 2 else (1, 3) if decades > 1.2 else (1, 2, 5)
    ticks = [float(f"{s}e{d}") for d in range(math.floor(math.log10(low)), 9) for s in subdivisions]
    axis.set_ticks([tick for tick in ticks if low <= tick <= high * 1.001])
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


def panels(rows: int, columns: int, width: float, height: float, **options: Any):
    """Return a figure of equal panels, sizes in inches, and its axes `[rows, columns]`."""
    size = (width * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
