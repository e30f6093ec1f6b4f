"""A picture of input gradients of finished runs: `python launch/picture.py --output=PNG DIR...`.

On the left a few test images x, ∇ℓ(x) of each run and, if the runs were measured with one, Δx; on the right the error
over ε. Reads pictures.npz and result.json of classifier runs of one data set. It drew the README's picture.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, too

from gradalign_jax import records
from gradalign_jax.paper import SPHERES_SHAPE

SHAPE = {500: SPHERES_SHAPE}  # layout of a vector by its length


def main() -> None:
    """Read the pictures and results of the runs and write one PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", type=Path, metavar="DIR", help="directory of a finished classifier run")
    parser.add_argument("--output", type=Path, required=True, metavar="PNG", help="the file to write")
    arguments = parser.parse_args()
    results = [records.read(run / "result.json", "type the command of that run again") for run in arguments.run]
    pictures = [np.load(run / "pictures.npz") for run in arguments.run]
    lines = [("x", pictures[0]["image"])]
    lines += [(f"∇ℓ, {r['method']}", p["gradient"]) for r, p in zip(results, pictures, strict=True)]
    lines += [("Δx", pictures[0]["delta_x"])] if "delta_x" in pictures[0] else []
    figure, (images, curves) = plt.subplots(
        1, 2, figsize=(10.5, 0.75 * len(lines) + 0.4), width_ratios=(2.1, 1), layout="constrained"
    )
    draw_images(images, lines)
    for result in results:
        curve = result["curves"]["pgd_linf"]
        curves.plot(curve["epsilons"], curve["errors"], "o-", markersize=3, label=result["method"])
    curves.axhline(0.5, color="gray", linewidth=0.8, linestyle="--")
    curves.set(xlabel="ε of PGD L∞, images in [-1, 1]", ylabel="error rate", ylim=(-0.02, 1.02))
    curves.legend(frameon=False, fontsize=8, title=results[0]["dataset"], title_fontsize=8)
    figure.savefig(arguments.output, dpi=110)


def draw_images(axis: plt.Axes, lines: list[tuple[str, np.ndarray]]) -> None:
    """Draw a row of gray images, then rows of signed vectors, each vector scaled to its largest absolute value."""
    for row, (_, line) in enumerate(lines):
        for column, values in enumerate(line):
            flat = values.ndim == 1
            values = values.reshape(SHAPE.get(values.size, (1, -1))) if flat else values.mean(-1)
            signed = row > 0 or flat
            limit = np.abs(values).max() if signed else 1.0
            place = (column - 0.47, column + 0.47, row + 0.47, row - 0.47)
            axis.imshow(values, cmap="RdBu_r" if signed else "gray", vmin=-limit, vmax=limit, extent=place)
    axis.set(xlim=(-0.5, len(lines[0][1]) - 0.5), ylim=(len(lines) - 0.5, -0.5), xticks=[], aspect="equal")
    axis.set_yticks(range(len(lines)), [name for name, _ in lines])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


if __name__ == "__main__":
    main()
