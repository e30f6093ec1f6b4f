"""Finished runs: finds and checks their result files, and links each run to the runs behind its Δ̂x."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from gradalign_jax import paths, records
from gradalign_jax.report import checks

# Config keys that name the run behind an estimate of Δx or behind its generator.
SOURCES = ("delta_x.generator", "delta_x.store", "evaluate.generator", "evaluate.store", "project.generator")
ARRAYS = ("pictures.npz", "images.csv")  # files that a report reads beside result.json
_WITHOUT = ("checkpoints", "store", "samples")  # folders of a run without runs
_ORDER = ("vrgan", "gan", "project", "classifier", "evaluate")  # a run's sources come before it


class Run(NamedTuple):
    """A finished run.

    Attributes:
        path: Its directory.
        result: The content of its result.json.
        sources: The runs behind its Δ̂x by config key; None where a run is not in this report.
        written: When result.json was written, in seconds since the epoch.
    """

    path: Path
    result: Mapping[str, Any]
    sources: Mapping[str, "Run | None"] = {}
    written: float = 0.0

    @property
    def task(self) -> str:
        """classifier | evaluate | vrgan | gan | project, or deltax (launch/deltax.py)"""
        return self.result.get("task") or self.setting("task") or "classifier"

    @property
    def dataset(self) -> str:
        """Name of the data set, as in a config."""
        return self.result["dataset"]

    @property
    def seed(self) -> int:
        """Seed of the run; 0 where none is recorded."""
        return next((seed for seed in (self.result.get("seed"), self.setting("seed")) if isinstance(seed, int)), 0)

    def setting(self, key: str, default: Any = None) -> Any:
        """Return the value of a dotted config key, or `default` where the config does not have it."""
        value: Any = self.result.get("config") or {}
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    def changed(self, name: str) -> bool:
        """Return whether a file beside result.json differs from the one whose digest the result holds."""
        digest, file = (self.result.get("files") or {}).get(name), self.path / name
        return digest is not None and file.is_file() and records.digest(file.read_bytes()) != digest


class Damaged(NamedTuple):
    """A result file that cannot be used, and the reason."""

    path: Path
    reason: str


def collect(folders: Iterable[Path]) -> tuple[list[Run], list[Damaged]]:
    """Return all runs with a result.json below the folders, sorted by path, and the damaged files.

    A file beside a result whose digest differs is named among the damaged ones. Symbolic
    links are followed; a run reached by several paths counts once.
    """
    files = {paths.as_path(paths.real(file)) for folder in folders for file in _result_files(paths.as_path(folder))}
    runs, damaged = [], []
    for file in sorted(files):
        try:
            if not file.is_file():
                raise ValueError("not a file")
            result = records.parse(file.read_bytes())
            checks.check(result)
            written = file.stat().mtime if paths.is_remote(file) else file.stat().st_mtime
            runs.append(Run(file.parent, result, written=written))
            damaged += [Damaged(file.parent / name, "its digest differs") for name in ARRAYS if runs[-1].changed(name)]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            damaged.append(Damaged(file, next(iter(reason.splitlines()), type(error).__name__)))
    return linked(runs), damaged


def _result_files(folder: Path) -> Iterator[Path]:
    """Yield the result files below a folder, every directory once however many links lead to it."""
    if paths.is_remote(folder):
        if (folder / "result.json").exists():
            yield folder / "result.json"
        for below in sorted(folder.iterdir()):
            if below.name not in _WITHOUT and below.is_dir():
                yield from _result_files(below)
        return
    visited = set()
    for directory, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in visited:
            below.clear()
            continue
        visited.add(real)
        if "result.json" in names:
            yield Path(directory, "result.json")


def is_directory_of(directory: str, run: Run) -> bool:
    """Return whether a path in a config is a run's directory.

    A run that was moved since is recognized by the last three parts of its path.
    """
    path, remote = PurePosixPath(directory), paths.is_remote(directory)
    if not path.name:
        return False
    if paths.real(directory) == paths.real(run.path):
        return True
    return (remote or not os.path.exists(directory)) and path.parts[-3:] == run.path.parts[-3:]  # asks no bucket


def linked(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with their sources, which are linked themselves."""
    linked: dict[Path, Run] = {}
    for run in sorted(runs, key=lambda run: _ORDER.index(run.task) if run.task in _ORDER else len(_ORDER)):
        directories = {key: value for key in SOURCES if (value := run.setting(key))}
        sources = {
            key: next((other for other in linked.values() if is_directory_of(value, other)), None)
            for key, value in directories.items()
        }
        linked[run.path] = run._replace(sources=sources)
    return [linked[run.path] for run in runs]
