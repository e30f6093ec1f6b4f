"""Finds the result files of finished runs, checks them, and links each run to those that made its Δ̂x."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from gradalign_jax import paper

# Config keys that name the run an estimate of Δx, or its generator, is from.
SOURCES = ("delta_x.generator", "delta_x.store", "evaluate.generator", "evaluate.store", "project.generator")
_NUMBERS = ("accuracy", "seconds", "alpha_delta_x", *paper.S2_COLUMNS)
_TABLES = ("config", "epsilon_half", "curves", "norms", "similarity_by_class", "versions", "evaluated_config")
_ORDER = ("vrgan", "gan", "project", "classifier", "evaluate")  # sources before what is made with them


class Run(NamedTuple):
    """One finished run: its directory, its result.json, and the runs behind its Δ̂x by config key (None: not here)."""

    path: Path
    result: Mapping[str, Any]
    sources: Mapping[str, "Run | None"] = {}

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

    @property
    def written(self) -> float:
        """When the run ended, in seconds since the epoch."""
        return (self.path / "result.json").stat().st_mtime

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


def collect(folders: Iterable[Path]) -> tuple[list[Run], list[Damaged]]:
    """All runs with a result.json below the folders, in order of their paths, and the damaged files."""
    files = {file.resolve() for folder in folders for file in Path(folder).rglob("result.json")}
    runs, damaged = [], []
    for file in sorted(files):
        try:
            result = json.loads(file.read_text())
            _check(result)
        except (OSError, ValueError) as error:
            damaged.append(Damaged(file, str(error).splitlines()[0]))
            continue
        runs.append(Run(file.parent, result))
    return _linked(runs), damaged


def named(directory: str, run: Run) -> bool:
    """Whether a directory that a config names is this run's: the same, or, where it was moved, its last names."""
    path = Path(directory)
    if not path.name:
        return False
    if os.path.realpath(path) == os.path.realpath(run.path):
        return True
    return not path.exists() and path.parts[-3:] == run.path.parts[-3:]


def _linked(runs: Sequence[Run]) -> list[Run]:
    """The runs with their sources, themselves linked."""
    linked: dict[Path, Run] = {}
    for run in sorted(runs, key=lambda run: _ORDER.index(run.task) if run.task in _ORDER else len(_ORDER)):
        directories = {key: value for key in SOURCES if (value := run.setting(key))}
        sources = {
            key: next((other for other in linked.values() if named(str(value), other)), None)
            for key, value in directories.items()
        }
        linked[run.path] = run._replace(sources=sources)
    return [linked[run.path] for run in runs]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by their dotted names."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# ---- what a result file has to be like


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value))


def _check(result: Any) -> None:
    """Raises ValueError where something is not what a run writes; what is absent or null is missing, no more."""
    if not isinstance(result, dict) or not isinstance(result.get("dataset"), str):
        raise ValueError("no result of a run")
    for key in ("method", "task"):
        if not isinstance(result.get(key), str | None):
            raise ValueError(f"{key} is no name")
    for key in _NUMBERS:
        if not _is_number(result.get(key)):
            raise ValueError(f"{key} is no number")
    for key in _TABLES:
        if not isinstance(result.get(key), Mapping | None):
            raise ValueError(f"{key} is no table")
    halves = result.get("epsilon_half") or {}
    tables = {"epsilon_half": halves, "similarity_by_class": result.get("similarity_by_class") or {}}
    similarity = result.get("similarity")
    tables["similarity"] = similarity if isinstance(similarity, Mapping) else {"mean": similarity}
    for name, norms in (result.get("norms") or {}).items():
        tables[f"norms.{name}"] = norms
    for name, table in tables.items():
        if not isinstance(table, Mapping) or not all(map(_is_number, table.values())):
            raise ValueError(f"{name} holds what is no number")
    for name, curve in (result.get("curves") or {}).items():
        columns = [curve.get(key) for key in ("epsilons", "errors")] if isinstance(curve, Mapping) else [None]
        if not all(isinstance(column, list) and column and all(map(_is_number, column)) for column in columns):
            raise ValueError(f"curves.{name} has no epsilons or errors")
        if len(columns[0]) != len(columns[1]):
            raise ValueError(f"curves.{name} has {len(columns[0])} epsilons and {len(columns[1])} errors")
