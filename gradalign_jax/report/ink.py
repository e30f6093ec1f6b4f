"""How figures look, on light and on dark pages, and what a figure is."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import ticker

from gradalign_jax.report.results import Classifier
from gradalign_jax.report.runs import Run


class Ink(NamedTuple):
    """Colours of text, grid, page and the three methods."""

    text: str
    faint: str
    page: str
    baseline: str
    align: str
    pgd: str


LIGHT = Ink("#22262b", "#c9ced6", "#ffffff", "#6b7787", "#d97706", "#0f766e")
DARK = Ink("#e4e7eb", "#414853", "#15181d", "#9aa7b8", "#fbab4c", "#4fc3b5")


class Material(NamedTuple):
    """What figures are drawn from."""

    runs: Sequence[Run]
    classifiers: Sequence[Classifier]


class Figure(NamedTuple):
    """A figure of the paper: how it is drawn (None where nothing was measured) and what it takes."""

    name: str
    title: str
    caption: str
    draw: Callable[[Material, Ink], Any]
    takes: str


def style(ink: Ink) -> dict[str, Any]:
    """Matplotlib's settings in these colours."""
    return {
        "figure.facecolor": ink.page,
        "savefig.facecolor": ink.page,
        "axes.facecolor": ink.page,
        "axes.edgecolor": ink.faint,
        "axes.labelcolor": ink.text,
        "axes.titlecolor": ink.text,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.labelsize": 8.5,
        "grid.color": ink.faint,
        "grid.alpha": 0.45,
        "grid.linewidth": 0.6,
        "text.color": ink.text,
        "xtick.color": ink.text,
        "ytick.color": ink.text,
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


# Symbols as Matplotlib sets them.
SYMBOLS = {
    "ᾱ_Δx": r"$\bar{\alpha}_{\Delta x}$",
    "ᾱ_x": r"$\bar{\alpha}_x$",
    "L_α": r"$L_\alpha$",
    "∇ℓ": r"$\nabla\ell$",
    "Δ̂x": r"$\widehat{\Delta x}$",
    "x̂′": r"$\hat{x}'$",
    "Δx": r"$\Delta x$",
    "ε50%": r"$\varepsilon_{50\%}$",
}


def symbols(text: str) -> str:
    """The text with its symbols set as mathematics."""
    pattern = "|".join(map(re.escape, SYMBOLS))
    return re.sub(pattern, lambda found: SYMBOLS[found[0]], text)


def few_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks of a logarithmic axis as plain numbers: at 1, or at 1, 2 and 5 where that leaves few."""
    decades = math.log10(high / low)
    subdivisions = (1,) if decades > 2 else (1, 3) if decades > 1.2 else (1, 2, 5)
    ticks = [float(f"{s}e{d}") for d in range(math.floor(math.log10(low)), 9) for s in subdivisions]
    axis.set_ticks([tick for tick in ticks if low <= tick <= high * 1.001])
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


def panels(rows: int, columns: int, width: float, height: float, **options: Any):
    """A figure of equal panels, and its axes as a two-dimensional array."""
    size = (width * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
