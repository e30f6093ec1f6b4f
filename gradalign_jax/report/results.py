"""The classifiers of a report, each with all that was measured of it by its own run and by evaluations."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gradalign_jax import paper
from gradalign_jax.config_keys import BEFORE, flatten
from gradalign_jax.report import paper_settings
from gradalign_jax.report.differences import WITHOUT_EFFECT, work_order
from gradalign_jax.report.runs import SOURCES, Run, is_directory_of

# Runs that differ in these keys alone are comparable: they are averaged.
_NOT_COMPARED = {
    *WITHOUT_EFFECT,
    *("seed", "digest"),  # digest: of the weights that an evaluation read
    *("evaluate.cw_iterations", "evaluate.cw_learning_rate"),  # of Figure 7 alone
}
# Keys that name other runs; compared is only whether they do.
_DIRECTORIES = (*SOURCES, "gan.classifier", "delta_x.teacher", "evaluate.teacher")
_QUANTITIES = tuple(dict.fromkeys((*paper.COLUMNS, *paper.S2_COLUMNS)))


class Classifier(NamedTuple):
    """All that was measured of a classifier.

    Attributes:
        run: The run that trained it, or an evaluation that shows the config of that run.
        values: Measured numbers by the names of `paper.COLUMNS` and `paper.S2_COLUMNS`, accuracy in percent; None
            where nothing was measured.
        curves: Error over ε by attack.
        evaluations: Its evaluations.
        sources: The evaluations behind some of the values.
        uses_own_values: Whether some of the values are from the run that trained it.
    """

    run: Run
    values: Mapping[str, float | None]
    curves: Mapping[str, Mapping[str, Any]]
    evaluations: tuple[Run, ...]
    sources: tuple[Run, ...] = ()
    uses_own_values: bool = True

    @property
    def method(self) -> str:
        """baseline | align | pgd"""
        return self.run.result["method"]

    @property
    def epsilon(self) -> float | None:
        """ε of PGD training; None for other methods."""
        return self.run.setting("attack.epsilon", paper.EPSILON.get(self.run.dataset)) if self.method == "pgd" else None

    @property
    def has_table_2_epsilon(self) -> bool:
        """Whether it was trained with the ε of Table S1, or without one."""
        wanted = paper.EPSILON.get(self.run.dataset)
        return self.epsilon is None or wanted is None or abs(self.epsilon - wanted) < 1e-9

    def is_censored(self, quantity: str) -> bool:
        """Return whether an ε50% lies beyond the attack's largest ε; False for other quantities."""
        return self.values.get(quantity) is not None and bool((self.curves.get(quantity) or {}).get("censored"))


def _values(result: Mapping[str, Any]) -> dict[str, float | None]:
    half = result.get("epsilon_half") or {}
    accuracy = result.get("accuracy")
    values = {name: result.get(name, half.get(name)) for name in _QUANTITIES}
    return values | {"accuracy": None if accuracy is None else 100 * accuracy}


def _work(run: Run, name: str) -> tuple[float, float]:
    """Return how much a run measured of a quantity: queries, and images."""
    curve = (run.result.get("curves") or {}).get(name) or {}
    return curve.get("queries") or 0, curve.get("images") or run.setting("evaluate.images") or math.inf


def _measures(evaluation: Run, run: Run) -> bool:
    """Return whether an evaluation is of this run."""
    identity = ("dataset", "method", "seed")
    same = all(evaluation.result.get(key) == run.result.get(key) for key in identity)
    return same and is_directory_of(evaluation.result.get("evaluated") or evaluation.setting("classifier") or "", run)


def measurements(classifier: Classifier) -> list[Run]:
    """Return the runs that measured a classifier: its own, if that is in the report, then its evaluations."""
    own = () if classifier.run.path in [run.path for run in classifier.evaluations] else (classifier.run,)
    return [*own, *classifier.evaluations]


def as_measured_by(classifier: Classifier, source: Run) -> Classifier:
    """Return a classifier with the numbers of one of its measurements alone."""
    own = source not in classifier.evaluations
    curves = source.result.get("curves") or {}
    sources = () if own else (source,)
    return classifier._replace(values=_values(source.result), curves=curves, sources=sources, uses_own_values=own)


def measurement(classifier: Classifier) -> Mapping[str, Any]:
    """Return the result behind the numbers of `as_measured_by`."""
    return next(iter(classifier.sources), classifier.run).result


def _from_evaluation(evaluation: Run) -> Classifier:
    """Return the classifier of an evaluation whose training run is not in the report."""
    trained = evaluation.result.get("evaluated_config") or evaluation.result.get("config")
    run = evaluation._replace(result={**evaluation.result, "config": trained})
    curves = run.result.get("curves") or {}
    return Classifier(run, _values(run.result), curves, (evaluation,), (evaluation,), uses_own_values=False)


def _merged(run: Run, evaluations: Iterable[Run]) -> Classifier:
    """Return a classifier with each quantity from the run that measured most of it, its own run before others."""
    evaluations = tuple(sorted(evaluations, key=lambda evaluation: (work_order(evaluation), -evaluation.written)))
    values, curves, used = {}, {}, []
    for name in _QUANTITIES:
        present = [source for source in (run, *evaluations) if _values(source.result)[name] is not None]
        values[name] = None
        if present:
            best = max(present, key=lambda source: _work(source, name))
            values[name] = _values(best.result)[name]
            used.append(best)
    for name in {name for source in (run, *evaluations) for name in source.result.get("curves") or {}}:
        present = [source for source in (run, *evaluations) if name in (source.result.get("curves") or {})]
        curves[name] = max(present, key=lambda source: _work(source, name)).result["curves"][name]
    sources = tuple(evaluation for evaluation in evaluations if evaluation in used)
    return Classifier(run, values, curves, evaluations, sources, run in used or not used)


def classifiers(runs: Iterable[Run]) -> list[Classifier]:
    """Return the classifiers with their evaluations, and those of evaluations whose training run is missing."""
    candidates = [run for run in runs if run.result.get("method") in paper.METHODS]
    found = []
    evaluations = [run for run in candidates if run.task == "evaluate"]
    for run in (run for run in candidates if run.task == "classifier"):
        own = [evaluation for evaluation in evaluations if _measures(evaluation, run)]
        evaluations = [evaluation for evaluation in evaluations if evaluation not in own]
        found.append(_merged(run, own))
    return found + [_from_evaluation(evaluation) for evaluation in evaluations]


def settings_of(run: Run) -> dict[str, Any]:
    """Return what makes two runs comparable: their configs without seed, paths and pace.

    A key from after a run counts at the value that the run had without it.
    """
    config = run.result.get("config") or {}
    flat, sections = dict(flatten(config)), {key for key, value in config.items() if isinstance(value, Mapping)}
    defaults = paper_settings.values(run.dataset, run.task) | BEFORE
    flat = {key: value for key, value in defaults.items() if key.partition(".")[0] in sections} | flat
    kept = {key: json.dumps(value) for key, value in flat.items() if key not in _NOT_COMPARED}
    if flat.get("model.pretrained"):  # a file can have several paths
        kept["model.pretrained"] = "/".join(Path(flat["model.pretrained"]).parts[-2:])
    return kept | {key: bool(flat[key]) for key in _DIRECTORIES if key in flat and key not in _NOT_COMPARED}
