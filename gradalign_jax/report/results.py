"""Puts together what was measured of each classifier, by its own run and by evaluations of it."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gradalign_jax import paper
from gradalign_jax.report.departures import best_first
from gradalign_jax.report.runs import SOURCES, Run, flatten, named

# Keys that tell neither what was trained nor what was measured: runs that differ in these alone are one row.
_APART = {
    *("seed", "devices", "data.dir", "data.cache", "data.folder", "data.table", "train.log_every", "classifier"),
    "digest",  # of the weights that an evaluation read
    *("train.checkpoint_minutes", "evaluate.block"),
    *("evaluate.cw_images", "evaluate.cw_iterations"),  # of Figure 7 alone
}
_DIRECTORIES = (*SOURCES, "gan.classifier")  # keys that name other runs: only whether they do counts
_QUANTITIES = (*paper.COLUMNS, *paper.S2_COLUMNS)


class Classifier(NamedTuple):
    """What was measured of one classifier, by its own run and by evaluations of it; None where nothing was."""

    run: Run
    values: Mapping[str, float | None]  # by the names of paper.COLUMNS and paper.S2_COLUMNS; accuracy in per cent
    curves: Mapping[str, Mapping[str, Any]]
    evaluations: tuple[Run, ...]
    sources: tuple[Run, ...] = ()  # those evaluations that some of the values are from
    own: bool = True  # whether some of the values are from the run itself

    @property
    def method(self) -> str:
        """baseline | align | pgd"""
        return self.run.result["method"]

    @property
    def epsilon(self) -> float | None:
        """The ε that PGD trained with."""
        return self.run.setting("attack.epsilon", paper.EPSILON.get(self.run.dataset)) if self.method == "pgd" else None

    @property
    def as_in_table_2(self) -> bool:
        """Whether it was trained with the ε of Table S1, or without one."""
        wanted = paper.EPSILON.get(self.run.dataset)
        return self.epsilon is None or wanted is None or abs(self.epsilon - wanted) < 1e-9


def _values(result: Mapping[str, Any]) -> dict[str, float | None]:
    half = result.get("epsilon_half") or {}
    accuracy = result.get("accuracy")
    values = {name: result.get(name, half.get(name)) for name in _QUANTITIES}
    return values | {"accuracy": None if accuracy is None else 100 * accuracy}


def _work(run: Run, name: str) -> tuple[float, float]:
    """How much a run measured of a quantity: queries, and images."""
    curve = (run.result.get("curves") or {}).get(name) or {}
    return curve.get("queries") or 0, curve.get("images") or run.setting("evaluate.images") or math.inf


def _measures(evaluation: Run, run: Run) -> bool:
    """Whether an evaluation is of this run."""
    known = ("dataset", "method", "seed")
    same = all(evaluation.result.get(key) == run.result.get(key) for key in known)
    return same and named(str(evaluation.result.get("evaluated") or evaluation.setting("classifier", "")), run)


def _alone(evaluation: Run) -> Classifier:
    """An evaluation as the only thing known of its classifier, whose own config it holds."""
    trained = evaluation.result.get("evaluated_config") or evaluation.result.get("config")
    run = evaluation._replace(result={**evaluation.result, "config": trained})
    return Classifier(run, _values(run.result), run.result.get("curves") or {}, (evaluation,), (evaluation,), False)


def _together(run: Run, evaluations: Iterable[Run]) -> Classifier:
    """Each quantity from whoever measured most of it, the run itself where several did the same."""
    evaluations = tuple(sorted(evaluations, key=lambda e: (best_first(e), -e.written)))
    values, curves, used = {}, {}, []
    for name in _QUANTITIES:
        known = [source for source in (run, *evaluations) if _values(source.result)[name] is not None]
        values[name] = None
        if known:
            best = max(known, key=lambda source: _work(source, name))
            values[name] = _values(best.result)[name]
            used.append(best)
    for name in {name for source in (run, *evaluations) for name in source.result.get("curves") or {}}:
        known = [source for source in (run, *evaluations) if name in (source.result.get("curves") or {})]
        curves[name] = max(known, key=lambda source: _work(source, name)).result["curves"][name]
    sources = tuple(evaluation for evaluation in evaluations if evaluation in used)
    return Classifier(run, values, curves, evaluations, sources, run in used or not used)


def classifiers(runs: Iterable[Run]) -> list[Classifier]:
    """One entry a classifier, with its evaluations; an evaluation of a run that is not there stands alone."""
    known = [run for run in runs if run.result.get("method") in paper.METHODS]
    found = []
    evaluations = [run for run in known if run.task == "evaluate"]
    for run in (run for run in known if run.task == "classifier"):
        own = [evaluation for evaluation in evaluations if _measures(evaluation, run)]
        evaluations = [evaluation for evaluation in evaluations if evaluation not in own]
        found.append(_together(run, own))
    return found + [_alone(evaluation) for evaluation in evaluations]


def settings_of(run: Run) -> dict[str, Any]:
    """What makes two runs comparable: their configs but for the seed, places and pace."""
    flat = dict(flatten(run.result.get("config") or {}))
    kept = {key: json.dumps(value) for key, value in flat.items() if key not in _APART}
    if flat.get("model.pretrained"):  # a file may be named from elsewhere
        kept["model.pretrained"] = "/".join(Path(flat["model.pretrained"]).parts[-2:])
    return kept | {key: bool(flat[key]) for key in _DIRECTORIES if key in flat}
