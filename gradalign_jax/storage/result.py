"""The content of result.json, and a classifier's table beside the paper's numbers."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from gradalign_jax import __version__, paper
from gradalign_jax.ops import precision
from gradalign_jax.paper import ALPHAS

# Of the table: the quantities of Table 2, then the alignments of x with the other gradients of Table S2.
_ROWS = paper.QUANTITY_NAMES | {
    "accuracy": "accuracy",
    **{name: f"ᾱ of x and {paper.GRADIENT_NAMES[name]}" for name in ALPHAS[2:]},
}


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the packages that compute a result."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    return {"gradalign_jax": __version__, "python": platform.python_version(), **packages}


def precisions(config: ConfigDict) -> dict[str, str]:
    """Return the precision of each kind of product in a run on this platform."""
    return {**{part: precision.resolve(name) for part, name in config.precision.items()}, "reported": "float32"}


def provenance(config: ConfigDict, *, seconds: float, devices: Sequence[str], notes: Sequence[str]) -> dict[str, Any]:
    """Return the six entries that all tasks' results share: how, on what and from which config they were computed.

    Args:
      config: the run's config.
      seconds: the run's working time.
      devices: their kinds.
      notes: remarks for the reader of the result.
    """
    return {
        "seconds": seconds,
        "devices": list(devices),
        "versions": versions(),
        "precision": precisions(config),
        "notes": list(notes),
        "config": config.to_dict(),
    }


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
    """Return the content of result.json for the tasks `classifier` and `evaluate`.

    Args:
      config: the task's config.
      run: the config that trained the classifier: `config` itself, or that of the evaluated run.
      measured: the numbers of `evaluation.results.summarize`, None where nothing was measured.
      best: the selected epoch.
      seconds, devices, notes: as in `provenance`.
    """
    return {
        "dataset": run.data.name,
        "method": run.method,
        "seed": run.seed,
        **measured,
        "best": dict(best),
        **provenance(config, seconds=seconds, devices=devices, notes=notes),
    }


def table(outcome: Mapping[str, Any]) -> str:
    """Format the measured numbers beside the paper's (Tables 2 and S2), for a terminal."""
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
