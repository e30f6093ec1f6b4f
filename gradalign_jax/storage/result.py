"""A classifier run's outcome: the content of result.json, and the table that is printed beside the paper's numbers."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from gradalign_jax import __version__, paper
from gradalign_jax.evaluation.results import ALPHAS
from gradalign_jax.ops import precision

_ROWS = {
    "accuracy": "accuracy",
    "pgd_linf": "ε50% PGD L∞",
    "pgd_l2": "ε50% PGD L2",
    "square_linf": "ε50% Square L∞",
    "alpha_delta_x": "ᾱ_Δx  (Δx, Ψ_c̃ - Ψ_y)",
    "alpha_x": "ᾱ_x   (x, Ψ_m)",
    "alpha_x_label": "      (x, Ψ_y)",
    "alpha_x_target_label": "      (x, Ψ_c̃ - Ψ_y)",
    "alpha_x_closest_predicted": "      (x, Ψ_c* - Ψ_m)",
}


def versions() -> dict[str, str]:
    """Of what computed a result."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    return {"gradalign_jax": __version__, "python": platform.python_version(), **packages}


def precisions(config: ConfigDict) -> dict[str, str]:
    """The precision of each kind of product in a run, as its platform has it."""
    return {**{part: precision.resolve(name) for part, name in config.precision.items()}, "reported": "float32"}


def classifier_result(
    config: ConfigDict,
    run: ConfigDict,
    *,
    measured: Mapping[str, Any],
    best: Mapping[str, Any],
    seconds: float,
    devices: list[str],
    notes: list[str],
) -> dict[str, Any]:
    """What result.json holds: numbers as measured (`evaluation.results.summarize`), None where nothing was.

    `run` is the config that trained the classifier: `config` itself, or that of the run which was evaluated.
    """
    return {
        "dataset": run.data.name,
        "method": run.method,
        "seed": run.seed,
        **measured,
        "best": dict(best),
        "seconds": seconds,
        "devices": devices,
        "versions": versions(),
        "precision": precisions(config),
        "notes": notes,
        "config": config.to_dict(),
    }


def table(outcome: Mapping[str, Any]) -> str:
    """Measured numbers beside the paper's (Tables 2 and S2), for a terminal."""
    numbers = paper.numbers(outcome["dataset"], outcome["method"])
    values = {"accuracy": outcome["accuracy"], **outcome["epsilon_half"], **{a: outcome[a] for a in ALPHAS}}
    lines = [
        f"{outcome['dataset']}, {outcome['method']}, seed {outcome['seed']}",
        f"{'':26}{'here':>10}{'paper':>10}",
    ]

    def cell(value: float | None) -> str:
        return f"{'-' if value is None else format(value, '.4g'):>10}"

    lines += [f"{name:26}{cell(values[key])}{cell(numbers.get(key))}" for key, name in _ROWS.items()]
    half, alpha = outcome["epsilon_half"]["pgd_l2"], outcome["alpha_delta_x"]
    if outcome["dataset"] == "spheres" and alpha:
        lines.append(f"{'ε50% L2 / ᾱ_Δx':26}{cell(half / alpha)}{cell(0.15)}  (0.15 by Theorem 2)")
    lines += [f"warning: {line}" for line in outcome.get("warnings", ())]
    return "\n".join(lines + [f"note: {note}" for note in outcome["notes"]])
