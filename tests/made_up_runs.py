"""Made-up result files for tests of the report."""

import json

from gradalign_jax import paper
from gradalign_jax.report import results, runs

GRID = [0.0, 0.1, 0.2]


def classifier(folder, dataset="spheres", method="baseline", seed=0, **changed):
    """Write a classifier run; `changed` sets fields of its result, `config` is merged into its config."""
    epsilon = paper.EPSILON[dataset]
    config = {
        **{"task": "classifier", "seed": seed, "method": method},
        **{"attack": {"epsilon": epsilon, "steps": 40}, "train": {"epochs": 4, "steps_per_epoch": 100}},
    }
    for key, value in changed.pop("config", {}).items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    curve = {"epsilons": GRID, "errors": [0.0, 0.4, 1.0], "threshold": 0.5, "censored": False}
    result = {
        **{"dataset": dataset, "method": method, "seed": seed, "accuracy": 1.0, "config": config},
        "epsilon_half": {"pgd_linf": 0.006, "pgd_l2": 0.1, "square_linf": None},
        **{"alpha_delta_x": 0.6, "alpha_x": 0.5, "alpha_x_label": 0.5, "alpha_x_target_label": 0.4},
        **{"alpha_x_closest_predicted": 0.4, "curves": {"pgd_linf": curve, "pgd_l2": curve}},
        **{"seconds": 36.0, "devices": ["cpu"], "versions": {"jax": "0.10"}, "notes": ["from scratch"], **changed},
    }
    return write(folder, result)


def write(folder, result):
    """Write a result file; return its directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def found_in(*folders):
    """Return runs and classifiers below the folders, none of which may be damaged."""
    found, damaged = runs.collect(folders)
    assert not damaged
    return found, results.classifiers(found)


def cell_of(table, column, *key):
    """Return the cell of the only row with a key."""
    (row,) = [row for row in table.rows if row.key == key]
    return row.cells[table.columns.index(column)]


def series(folder, dataset="mnist35"):
    """Write PGD runs at three ε with two seeds each; return alignments and ε50% in the order of the table."""
    alphas, halves = [0.1, 0.2, 0.25, 0.2, 0.4, 0.38], [0.2, 0.25, 0.4, 0.3, 0.5, 0.55]
    for i, (alpha, half) in enumerate(zip(alphas, halves, strict=True)):
        at = {"attack": {"epsilon": (0.15, 0.21, 0.3)[i // 2]}}
        half = {"pgd_linf": half}
        classifier(folder / str(i), dataset, "pgd", i % 2, alpha_delta_x=alpha, epsilon_half=half, config=at)
    return alphas, halves


def suite(errors, half, norm="linf", name="autoattack", censored=False):
    """Return a suite's part of a result, from each attack's errors on `GRID` and the worst case's ε50%."""
    curve = {"epsilons": GRID, "images": 10, "epsilon_half": half, "threshold": 0.5, "censored": censored}
    spent = {"gradients": 100.0, "queries": 2.5, "seconds": 30.0}
    curves = {f"{attack}_{norm}": {**curve, **spent, "errors": values} for attack, values in errors.items()}
    curves[f"worst_{norm}"] = {**curve, "errors": list(errors.values())[-1]}
    smallest, fooled_by = {f"worst_{norm}": [0.1, None]}, [["clean", None]]
    halves = {"epsilon_half": dict.fromkeys(curves, half), "smallest_epsilon": smallest, "fooled_by": fooled_by}
    return {"name": name, "norm": norm, "curves": curves, **halves}
