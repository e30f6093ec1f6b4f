"""Figures 1-3: the geometry of Δx on Spheres, and the two ways to estimate it on Squares; drawn from formulas."""

from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patches

from gradalign_jax.report.style import Figure, Inputs, Palette
from gradalign_jax.report.text import as_mathtext

RADII = (1.0, 1.3)  # of Spheres' classes −1 and 1 (section 2.1)


class Theorem1(NamedTuple):
    """Two closest points of Spheres' classes and a linear classifier with boundary ⟨ω, v⟩ = t, in a plane.

    Attributes:
        points: The points `[2, 2]`, of classes −1 and 1.
        normal: ω `[2]`, of length 1.
        threshold: t.
        robustness: Signed distance of each point to the boundary `[2]`.
    """

    points: np.ndarray
    normal: np.ndarray
    threshold: float
    robustness: np.ndarray


def theorem_1(angle: float, offset: float) -> Theorem1:
    """Return the geometry of Theorem 1 on Spheres.

    Args:
      angle: angle between ω and Δx, in radians.
      offset: distance along Δx of the boundary from the middle between the points.

    Returns:
      Points, boundary and robustness, for which ρ(x_i) + ρ(x_j) = ‖Δx‖ cos(angle).
    """
    points = np.array([[0.0, radius] for radius in RADII])
    normal = np.array([np.sin(angle), np.cos(angle)])
    threshold = float(normal @ (points.mean(0) + np.array([0.0, offset])))
    return Theorem1(points, normal, threshold, np.array([-1, 1]) * (points @ normal - threshold))


def square(side: int, size: int) -> np.ndarray:
    """Return an image of Squares without noise `[size, size, 1]`: 0.5 in the square, −0.5 around it."""
    half, center = side // 2, size // 2
    image = np.full((size, size, 1), -0.5)
    image[center - half : center + half, center - half : center + half] = 0.5
    return image


def noise(size: int, pixels: float, deviation: float, seed: int) -> np.ndarray:
    """Return Gaussian noise `[size, size, 1]` of a standard deviation, smoothed over `pixels`."""
    frequency = np.fft.fftfreq(size)
    blur = np.exp(-2 * (np.pi * pixels) ** 2 * (frequency[:, None] ** 2 + frequency**2))
    smooth = np.fft.ifft2(np.fft.fft2(np.random.default_rng(seed).normal(size=(size, size))) * blur).real
    return deviation * (smooth / smooth.std())[..., None]


def draw_theorem_1(inputs: Inputs, palette: Palette):
    """Draw Figure 1: Theorem 1 on Spheres."""
    geometry = theorem_1(angle=0.55, offset=0.02)
    (low, high), normal = geometry.points, geometry.normal
    along = np.array([normal[1], -normal[0]])
    colors = (palette.baseline, palette.align)  # of classes −1 and 1
    figure, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
    angles = np.linspace(0.5 * np.pi - 0.3, 0.5 * np.pi + 0.3, 100)
    for radius, color, name in zip(RADII, colors, ("class −1, radius 1", "class 1, radius 1.3"), strict=True):
        axis.plot(radius * np.cos(angles), radius * np.sin(angles), color=color, linewidth=2.5, label=name)
    middle = geometry.threshold * normal + along * (along @ geometry.points.mean(0))
    ends = [middle + length * along for length in (-0.36, 0.3)]
    axis.plot(*np.transpose(ends), color=palette.pgd, linewidth=2, label="decision boundary")
    for point, robustness, sign, side in zip(geometry.points, geometry.robustness, (1, -1), "ij", strict=True):
        foot = point + sign * robustness * normal
        axis.plot(*np.transpose([point, foot]), color=palette.text, linestyle=":", linewidth=1.4)
        axis.annotate(f"$\\rho(x_{side})$", (point + foot) / 2, xytext=(sign * 16, 0), textcoords="offset points",
                      ha="center", va="center")  # fmt: skip
        axis.annotate(f"$x_{side}$", point, xytext=(-sign * 3, -sign * 12), textcoords="offset points", va="center")
    arrow = {"arrowstyle": "-|>", "color": palette.text, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", high, low, arrowprops=arrow)
    axis.annotate(as_mathtext("Δx"), 0.75 * low + 0.25 * high, xytext=(-14, 0), textcoords="offset points")
    start = middle + 0.2 * along
    axis.annotate("", start + 0.12 * normal, start, arrowprops=arrow)
    axis.annotate(r"$\omega$", start + 0.12 * normal, xytext=(3, 2), textcoords="offset points")
    axis.plot(*geometry.points.T, "o", color=palette.text, markersize=4)
    axis.set(aspect="equal", xlim=(-0.37, 0.37), ylim=(0.93, 1.4))
    axis.set_axis_off()
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    return figure


def _canvas(width: float, height: float):
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    axis.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axis.set_axis_off()
    return figure, axis


def _image(axis: plt.Axes, x: float, y: float, values: np.ndarray, name: str, signed: bool = False) -> None:
    """Draw an image of side 1 at its center, its name below."""
    limit = float(np.abs(values).max()) if signed else 1.0
    extent = (x - 0.5, x + 0.5, y - 0.5, y + 0.5)
    axis.imshow(values[..., 0], cmap="RdBu_r" if signed else "gray", vmin=-limit, vmax=limit, extent=extent)
    axis.text(x, y - 0.55, as_mathtext(name), ha="center", va="top")


def _box(axis: plt.Axes, palette: Palette, x: float, y: float, name: str, color: str, width: float = 0.7) -> None:
    """Draw a box of height 0.5 at its center."""
    box = patches.FancyBboxPatch(
        (x - width / 2, y - 0.25), width, 0.5, boxstyle="round,pad=0.02", facecolor=palette.page, edgecolor=color
    )
    axis.add_patch(box)
    axis.text(x, y, as_mathtext(name), ha="center", va="center")


def _arrow(axis: plt.Axes, palette: Palette, start: tuple, end: tuple, bend: float = 0.0, line: str = "-") -> None:
    style = {"arrowstyle": "-|>", "color": palette.text, "linestyle": line, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=style | {"connectionstyle": f"arc3,rad={bend}"})


def draw_direct_method(inputs: Inputs, palette: Palette):
    """Draw Figure 2: how the direct method is trained."""
    figure, axis = _canvas(9.4, 3.6)
    large, small = (square(side, size=224) for side in (142, 88))  # section 3.1
    x, delta = large + noise(224, 2.5, 0.5, seed=0), small - large
    _image(axis, 0.7, 2.7, x, "x")
    _box(axis, palette, 2.2, 2.7, "G(x, ¬y)", palette.align, 1.0)
    _image(axis, 3.8, 2.7, delta, "Δ̂x", signed=True)
    axis.text(5.0, 2.7, "+", ha="center", va="center", fontsize=15)
    _image(axis, 6.0, 2.7, x + delta, "x̂′")
    _box(axis, palette, 7.4, 2.7, "D", palette.pgd)
    _box(axis, palette, 7.4, 0.7, "D", palette.pgd)
    _box(axis, palette, 8.8, 3.05, "L_G", palette.align, 0.9)
    _box(axis, palette, 8.8, 2.35, "L_Dx̂′", palette.pgd, 0.9)
    _box(axis, palette, 8.8, 0.7, "L_Dx", palette.pgd, 0.9)
    _box(axis, palette, 3.8, 1.35, "L_RegG", palette.align, 0.9)
    for start, end in (
        *(((1.25, 2.7), (1.65, 2.7)), ((2.75, 2.7), (3.25, 2.7)), ((4.35, 2.7), (4.85, 2.7))),
        *(((5.15, 2.7), (5.45, 2.7)), ((6.55, 2.7), (7.0, 2.7)), ((7.8, 2.75), (8.3, 3.0))),
        *(((7.8, 2.65), (8.3, 2.4)), ((7.8, 0.7), (8.3, 0.7)), ((3.8, 1.93), (3.8, 1.65))),
    ):
        _arrow(axis, palette, start, end)
    _arrow(axis, palette, (0.7, 1.9), (7.0, 0.7), bend=0.25)
    _arrow(axis, palette, (0.9, 3.25), (4.95, 2.9), bend=-0.2)
    return figure


def draw_indirect_method(inputs: Inputs, palette: Palette):
    """Draw Figure 3: how the indirect method projects an image to another class."""
    figure, axis = _canvas(7.6, 2.2)
    axis.set_ylim(0.45, 2.2)
    x, projected = (square(side, 32) + noise(32, 1.0, 0.25, seed=1).clip(-0.5, 0.5) for side in (20, 12))
    _box(axis, palette, 0.6, 1.6, "z, c", palette.baseline)
    _box(axis, palette, 2.0, 1.6, "G", palette.align)
    _image(axis, 3.5, 1.6, projected, "G(z, c)")
    _box(axis, palette, 5.2, 1.6, "L_proj", palette.pgd, 0.9)
    _image(axis, 6.9, 1.6, x, "x")
    for start, end in (
        *(((1.0, 1.6), (1.6, 1.6)), ((2.4, 1.6), (2.95, 1.6))),
        *(((4.05, 1.6), (4.7, 1.6)), ((6.35, 1.6), (5.7, 1.6))),
    ):
        _arrow(axis, palette, start, end)
    _arrow(axis, palette, (5.2, 1.3), (0.6, 1.3), bend=-0.22, line="--")
    return figure


FIGURES_1_TO_3 = (
    Figure(
        "figure1",
        "Figure 1 · Theorem 1 on Spheres",
        "A plane through the origin and two closest points of the classes. The distances of the points to the boundary "
        "of a linear classifier add up to ‖Δx‖ times the cosine of the angle between its normal ω and Δx. Drawn from "
        "the formulas.",
        draw_theorem_1,
        "nothing",
    ),
    Figure(
        "figure2",
        "Figure 2 · The direct method",
        "The generator G adds Δ̂x to x; the critic D tells classes apart. Losses in orange train G, in green D. The "
        "images are Squares and its exact Δx, drawn from the formulas.",
        draw_direct_method,
        "nothing",
    ),
    Figure(
        "figure3",
        "Figure 3 · The indirect method",
        "The latent z of a conditional GAN is moved (dashed) until G(z, c) is close to x; Δ̂x = G(z*, c) − x. The "
        "images are Squares32's, drawn from the formulas.",
        draw_indirect_method,
        "nothing",
    ),
)
