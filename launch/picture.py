"""Puts finished runs side by side: `python launch/picture.py --output=PNG DIR...` (the README's picture).

Left each run's input gradients, as it drew them; right the error over ε of all of them, from their result.json.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    """Reads the runs' pictures and results and writes one PNG."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="+", type=Path, help="directory of a finished run")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    figure = plt.figure(figsize=(10, 3 * len(arguments.run)), layout="constrained")
    grid = figure.add_gridspec(len(arguments.run), 2, width_ratios=(1.5, 1))
    curves = figure.add_subplot(grid[:, 1])
    for row, run in enumerate(arguments.run):
        result = json.loads((run / "result.json").read_text())
        name = f"{result['dataset']}, {result['method']}"
        axis = figure.add_subplot(grid[row, 0])
        axis.imshow(plt.imread(run / "gradients.png"))
        axis.set_title(name, fontsize=9)
        axis.axis("off")
        curve = result["curves"]["pgd_linf"]
        curves.plot(curve["epsilons"], curve["errors"], "o-", markersize=3, label=name)
    curves.axhline(0.5, color="grey", linewidth=0.8, linestyle="--")
    curves.set(xlabel="ε of PGD L∞, images in [-1, 1]", ylabel="error rate", ylim=(-0.02, 1.02))
    curves.legend(frameon=False, fontsize=8)
    figure.savefig(arguments.output, dpi=110)


if __name__ == "__main__":
    main()
