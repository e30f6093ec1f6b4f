"""Finds the result files of finished runs and puts together what was measured of each classifier."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gradalign_jax import paper
from gradalign_jax.report import theirs

# Keys that tell neither what was trained nor what was measured: runs that differ in these alone are one row.
_APART = {
    *("seed", "devices", "data.dir", "data.cache", "data.folder", "data.table", "train.log_every", "classifier"),
    "digest",  # of the weights that an evaluation read
    *("train.checkpoint_minutes", "evaluate.block", "evaluate.same_generator"),
    *("evaluate.cw_images", "evaluate.cw_iterations"),  # of Figure 7 alone
}
# Keys that name other runs' directories: only whether they do counts.
_SOURCES = (
    *("delta_x.generator", "delta_x.store", "evaluate.generator", "evaluate.store", "project.generator"),
    "gan.classifier",
)
# Keys that `departures` always puts into words of its own.
TOLD = {
    *("train.epochs", "train.steps_per_epoch", "data.limit", "model.pretrained", "validate.epsilons"),
    *("attack.steps", "attack.training_dtype", "attack.clip"),
    *(f"evaluate.{key}" for key in ("images", "linf_epsilons", "l2_epsilons", "square_queries", "square_images")),
}
_QUERIES = 5000  # of Square Attack
_WEIGHTS = "classifier.safetensors"  # as a run leaves them
_PRETRAINED = ("squares", "mnist35", "copd", "mnist")  # start from ImageNet weights in the paper


class Run(NamedTuple):
    """One finished run: its directory and its result.json."""

    path: Path
    result: Mapping[str, Any]

    @property
    def task(self) -> str:
        """classifier | evaluate | vrgan | gan | project"""
        return self.result.get("task") or self.setting("task") or "classifier"

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return self.result["dataset"]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return next((seed for seed in (self.result.get("seed"), self.setting("seed")) if isinstance(seed, int)), 0)

    def setting(self, dotted: str, default: Any = None) -> Any:
        """A key of the run's config, or `default`."""
        value: Any = self.result.get("config") or {}
        for key in dotted.split("."):
            if not isinstance(value, Mapping) or key not in value:
                return default
            value = value[key]
        return value


class Damaged(NamedTuple):
    """A result file that cannot be read, and why."""

    path: Path
    reason: str


class Classifier(NamedTuple):
    """What was measured of one classifier, by its own run and by evaluations of it; None where nothing was."""

    run: Run
    values: Mapping[str, float | None]  # by the names of paper.COLUMNS and paper.S2_COLUMNS; accuracy in per cent
    curves: Mapping[str, Mapping[str, Any]]
    evaluations: tuple[Run, ...]
    sources: tuple[Run, ...] = ()  # those evaluations that some of the values are from

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


def collect(folders: Iterable[Path]) -> tuple[list[Run], list[Damaged]]:
    """All runs with a result.json below the folders, in order of their paths, and the damaged files."""
    files = {file.resolve() for folder in folders for file in Path(folder).rglob("result.json")}
    runs, damaged = [], []
    for file in sorted(files):
        try:
            result = json.loads(file.read_text())
            if not isinstance(result, dict) or not isinstance(result.get("dataset"), str):
                raise ValueError("no result of a run")
        except (OSError, ValueError) as error:
            damaged.append(Damaged(file, str(error).splitlines()[0]))
            continue
        runs.append(Run(file.parent, result))
    return runs, damaged


def _values(result: Mapping[str, Any]) -> dict[str, float | None]:
    half = result.get("epsilon_half") or {}
    accuracy = result.get("accuracy")
    values = {name: result.get(name, half.get(name)) for name in (*paper.COLUMNS, *paper.S2_COLUMNS)}
    return values | {"accuracy": None if accuracy is None else 100 * accuracy}


def _measures(evaluation: Run, run: Run) -> bool:
    """Whether an evaluation is of this run: the same directory, or, where it was moved, its last names."""
    named = Path(str(evaluation.result.get("evaluated") or evaluation.setting("classifier", "")))
    if not named.name:
        return False
    if os.path.realpath(named) == os.path.realpath(run.path):
        return True
    known = ("dataset", "method", "seed")
    same = all(evaluation.result.get(key) == run.result.get(key) for key in known)
    return not named.exists() and same and named.parts[-3:] == run.path.parts[-3:]


def _alone(evaluation: Run) -> Classifier:
    """An evaluation as the only thing known of its classifier, whose own config it holds."""
    trained = evaluation.result.get("evaluated_config") or evaluation.result.get("config")
    run = Run(evaluation.path, {**evaluation.result, "config": trained})
    return Classifier(run, _values(run.result), run.result.get("curves") or {}, (evaluation,), (evaluation,))


def classifiers(runs: Iterable[Run]) -> list[Classifier]:
    """One entry a classifier. An evaluation adds what its run lacks; one of a run that is not there stands alone."""
    runs = list(runs)
    known = [run for run in runs if run.result.get("method") in paper.METHODS]
    trained = [run for run in known if run.task == "classifier"]
    found = []
    evaluations = [run for run in known if run.task == "evaluate"]
    for run in trained:
        own = tuple(e for e in evaluations if _measures(e, run))
        evaluations = [e for e in evaluations if e not in own]
        values, curves, sources = _values(run.result), dict(run.result.get("curves") or {}), []
        for evaluation in own:
            more = _values(evaluation.result)
            if any(value is None and more.get(name) is not None for name, value in values.items()):
                sources.append(evaluation)
            values = {name: more.get(name) if value is None else value for name, value in values.items()}
            curves = dict(evaluation.result.get("curves") or {}) | curves
        found.append(Classifier(run, values, curves, own, tuple(sources)))
    return found + [_alone(evaluation) for evaluation in evaluations]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by their dotted names."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def settings_of(run: Run) -> dict[str, Any]:
    """What makes two runs comparable: their configs but for the seed, places and pace."""
    flat = dict(flatten(run.result.get("config") or {}))
    kept = {key: json.dumps(value) for key, value in flat.items() if key not in _APART}
    return kept | {key: bool(flat[key]) for key in _SOURCES if key in flat}


def steps(run: Run) -> int | None:
    """Training steps of a run, where its config tells."""
    if run.task == "gan":
        return run.setting("gan.iterations")
    epochs, length = run.setting("train.epochs"), run.setting("train.steps_per_epoch")
    if not epochs or length is None:
        return None
    if length == 0 and not run.setting("data.limit", 0) and run.dataset in ("mnist", "cifar10"):
        length = paper.STEPS[run.dataset] // {"mnist": 30, "cifar10": 100}[run.dataset]
    return epochs * length or None


def departures(run: Run) -> list[str]:
    """In what a run differs from the paper's, as far as its config tells; each a few words."""
    found = []
    length = (paper.GAN_ITERATIONS if run.task == "gan" else paper.STEPS).get(run.dataset)
    if length and (ours := steps(run)) and ours != length:
        found.append(f"{ours:,} steps of {length:,}")
    if (projected := run.setting("project.steps")) and list(projected) != [600, 150]:
        found.append(f"{sum(projected):,} steps of 750")
    if run.setting("data.limit"):
        found.append(f"{run.setting('data.limit'):,} images a split")
    if run.setting("evaluate.images"):
        found.append(f"{run.setting('evaluate.images'):,} test images")
    if run.setting("attack.steps", 40) != 40:
        found.append(f"{run.setting('attack.steps')} attack steps of 40")
    if run.dataset in _PRETRAINED and run.setting("model.pretrained") == "":
        found.append("from scratch, not ImageNet weights")
    if Path(run.setting("model.pretrained") or "").name == _WEIGHTS:
        found.append("from another run's weights, not ImageNet weights")
    if run.result.get("method") == "pgd" and run.setting("attack.training_dtype", "float32") != "float32":
        found.append(f"attack of training in {run.setting('attack.training_dtype')}")
    queries, images = run.setting("evaluate.square_queries", 0), run.setting("evaluate.square_images", 0)
    if queries and queries != _QUERIES:
        found.append(f"{queries:,} queries of {_QUERIES:,}")
    if queries and images:
        found.append(f"{images:,} images under Square Attack")
    if run.setting("attack.clip", "range") != "range":
        found.append("attacks clamp to the data's range")
    return found + _other_values(run)


def _other_values(run: Run) -> list[str]:
    """The keys of `theirs` that a run changed, with both values."""
    found = []
    task = "classifier" if run.setting("method") else run.task  # an evaluation can show the config that trained
    for key, printed in theirs.values(run.dataset, task).items():
        ours = run.setting(key, printed)
        ours = tuple(ours) if isinstance(ours, list) else ours
        idle = key == "align.weight" and run.result.get("method") != "align"
        if ours == printed or idle:
            continue
        if isinstance(printed, tuple) and isinstance(ours, tuple):
            fewer = set(ours) < set(printed)
            found.append(f"{key}: {len(ours)} of {len(printed)} values" if fewer else f"{key}: other values")
        else:
            pair = ["all" if key.endswith(".images") and value == 0 else value for value in (ours, printed)]
            found.append(f"{key} {pair[0]}, not {pair[1]}")
    return found
