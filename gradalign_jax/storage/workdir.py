"""A run's directory: its config, checkpoints, metrics and results.

    config.json          the resolved config
    checkpoints/N/       step N; counts once N.json beside it exists (`storage/checkpoints.py`)
    metrics.jsonl        one line per log interval and per epoch; tensorboard/ holds the same
    evaluation.jsonl     finished points of the final evaluation, or of the running validation
    result.json, *.png   the result; pictures.npz holds the arrays behind the pictures, images.csv one line per test
                         image
    diverged.json        the step and the last metrics of a training that diverged; the same command repeats it

A task adds its weights (*.safetensors) and a projection run its store/.

Config, result, lines and manifests carry a digest; damaged lines and checkpoints are skipped, and older runs' are read
without one. A killed run resumes from the last intact checkpoint when the same command is typed again.

The directory may be in a bucket (`paths`): then it has no lock and no tensorboard/, checkpoints are made in a temporary
directory and copied, and a line is added by writing its file again.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from gradalign_jax import config_keys, paths, records, stopping
from gradalign_jax.errors import RunError
from gradalign_jax.records import seal, unseal
from gradalign_jax.storage import checkpoints
from gradalign_jax.storage.atomic import remove_temporary_files, write_atomically

ARRAYS = ("pictures.npz", "images.csv")
# Keys that change where, how fast or how visibly a run computes, but not its result.
FREE_KEYS = (
    *("devices", "data.dir", "data.cache", "data.folder", "data.table", "train.checkpoint_minutes"),
    *("evaluate.block", "project.block"),
)
# Keys by which a finished projection run is asked for more.
MORE_KEYS = ("project.classes", "project.classifier")


class Workdir:
    """One run's directory, held by one writer.

    Args:
      path: created if it is missing.
      config: the resolved config as plain data.

    Raises:
      RunError: if the directory cannot be written, belongs to another config (the differing keys are named), or has a
        live writer. A finished run need not be writable, and its config may lack keys that are newer. If one of
        MORE_KEYS differs, it counts as unfinished and the new value is recorded.
    """

    def __init__(self, path: str | os.PathLike, config: Mapping[str, Any]):
        self.path = paths.absolute(path)
        self.checkpoints = self.path / "checkpoints"
        self._board, self._started, self._lock = None, time.monotonic(), None
        self._told: set[str] = set()  # files whose damage was logged
        finished = (self.path / "result.json").exists()
        try:
            paths.make_folder(self.checkpoints)
            if paths.is_remote(self.path):
                logging.warning("%s cannot be locked: make sure that one process writes it", self.path)
            else:
                self._lock = open(self.path / ".lock", "a")  # noqa: SIM115 (held for the life of the run)
        except OSError as error:
            if not finished:
                raise RunError(f"cannot write --workdir={path}: {error.strerror}; choose another one") from error
        try:
            if self._lock:
                self._hold()
            self._claim(json.loads(json.dumps(config)), finished)
            self._count_from(max((point["seconds"] for point in self.points()), default=0.0))
        except RunError:
            self.close()  # a corrected call in the same process can claim it
            raise

    def _hold(self) -> None:
        """Take the lock, and remove what killed writers left."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another process is writing {self.path}: stop it or choose another --workdir") from error
        except OSError as error:
            logging.warning("cannot lock %s (%s): make sure that one process writes it", self.path, error.strerror)
            return
        for folder in (self.path, self.checkpoints, self.path / "samples"):
            remove_temporary_files(folder)

    def _claim(self, config: dict[str, Any], finished: bool) -> None:
        """Record the config, or compare it to the recorded one."""
        file = self.path / "config.json"
        try:
            before = records.read(file, "remove it, or choose another --workdir") if file.exists() else None
        except RunError as error:
            if not finished:
                raise
            logging.warning("%s", error)
            before = None
        changed = {} if before is None else config_keys.changes(before, config, FREE_KEYS)
        more = changed.keys() & MORE_KEYS
        changed = {key: values for key, values in changed.items() if key not in more}
        if finished:
            unknown = {key for key, (old, new) in changed.items() if old is None or new is None}
            if unknown:
                logging.warning("%s was made without config.%s", self.path, ", config.".join(sorted(unknown)))
            changed = {key: values for key, values in changed.items() if key not in unknown}
        if changed:
            raise RunError(
                f"{self.path} holds a run with another config: {config_keys.described(changed)}; "
                "type that run's command again, or choose another --workdir"
            )
        if more:
            (self.path / "result.json").unlink(missing_ok=True)
        if (more or not finished) and before != config:
            write_atomically(file, json.dumps(seal(config, records.SEAL), indent=1, sort_keys=True))

    def seconds(self) -> float:
        """Return how long the run has worked, including earlier starts up to their last save."""
        return time.monotonic() - self._started

    def _count_from(self, seconds: float) -> None:
        """Count at least `seconds` for earlier starts."""
        self._started = min(self._started, time.monotonic() - seconds)

    def saved(self) -> str:
        """Describe what a later start resumes from."""
        steps, points = checkpoints.steps(self.checkpoints), len(self.points())
        shards = len(list((self.path / "store").glob("*.safetensors")))
        parts = [
            *([f"training up to step {steps[-1]}"] if steps else []),
            *([f"{points} points of measurements"] if points else []),
            *([f"{shards} shards of the projection"] if shards else []),
        ]
        return f"saved in {self.path}: {', '.join(parts) or 'nothing yet'}"

    # ---- checkpoints

    def save(self, step: int, tree: Any, epoch_open: bool = False) -> None:
        """Save a tree of arrays as checkpoint `step`.

        Args:
          step: number of finished steps.
          tree: arrays on the host.
          epoch_open: whether an epoch ends here whose validation is still to come.

        Raises:
          RunError: if it cannot be written; the checkpoints before it stay.
        """
        record = {"seconds": self.seconds()} | ({"epoch_open": True} if epoch_open else {})
        checkpoints.save(self.checkpoints, step, tree, **record)

    def newest(self) -> int:
        """Return the step of the newest checkpoint, 0 without one."""
        return max(checkpoints.steps(self.checkpoints), default=0)

    def restore(self, like: Any) -> Any | None:
        """Return the newest intact checkpoint in the structure of `like`, or None.

        Raises:
          RunError: if there are checkpoints and all are damaged.
        """
        found = checkpoints.restore(self.checkpoints, like)
        if found is None:
            return None
        tree, manifest = found
        self._count_from(manifest["seconds"])
        return tree

    def epoch_open(self, step: int) -> bool:
        """Return whether checkpoint `step` was saved before the validation of the epoch that ends there."""
        return bool((checkpoints.read_manifest(self.checkpoints, step) or {}).get("epoch_open"))

    # ---- metrics and results

    def open_metrics(self, step: int, epoch_open: bool = False) -> None:
        """Drop the metrics after `step`, whose work a kill undid, and open the files for more.

        Args:
          step: the last one that counts.
          epoch_open: whether the epoch that ends at `step` is still to be validated; drops its validation too.
        """
        undone = step if epoch_open else step + 1
        kept = [line for line in self.history() if line["step"] < (undone if "epoch" in line else step + 1)]
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(seal(line)) + "\n" for line in kept))
        if not paths.is_remote(self.path):
            from tensorboardX import SummaryWriter  # slow to import, and an evaluation needs none

            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def metrics(self, step: int, **values: float) -> None:
        """Append one line to metrics.jsonl, and the same scalars for TensorBoard.

        Raises:
          RunError: if they cannot be written.
        """
        self._append("metrics.jsonl", seal({"step": step, **values}))
        if self._board is None:
            return
        if not self._board_writes():  # its queue would fill up, and then block forever
            raise RunError(f"cannot write {self.path / 'tensorboard'}: {checkpoints.RESUME}")
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, step)

    def _board_writes(self) -> bool:
        """Return whether the thread that writes TensorBoard's files is alive; a full disk ends it silently."""
        return self._board.file_writer.event_writer._worker.is_alive()

    def history(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, without damaged ones."""
        return self._intact("metrics.jsonl", lambda line: unseal(line) or _older_metrics(line))

    def points(self) -> list[dict[str, Any]]:
        """Return the recorded points, without damaged lines."""
        return self._intact("evaluation.jsonl", unseal)

    def _intact(self, name: str, read: Callable[[Any], dict[str, Any] | None]) -> list[dict[str, Any]]:
        """Return what `read` makes of a file's lines; the number of damaged ones, None, is logged once."""
        lines = [read(line) for line in self._lines(name)]
        intact = [line for line in lines if line is not None]
        if len(intact) < len(lines) and name not in self._told:
            self._told.add(name)
            logging.warning("%s: left out %d damaged lines", self.path / name, len(lines) - len(intact))
        return intact

    def remembered(self) -> Callable[..., Any]:
        """Return `value(measure, epsilon, first, compute)`: the recorded value, else `compute()`, recorded now."""
        done = {(p["measure"], p.get("epsilon"), p.get("first")): p["value"] for p in self.points()}

        def value(measure: str, epsilon: float | None, first: int, compute: Callable[[], Any]) -> Any:
            key = (measure, epsilon, first)
            if key not in done:
                stopping.check()
                done[key] = compute()
                self.point(measure=measure, epsilon=epsilon, first=first, value=done[key])
            return done[key]

        return value

    def forget_points(self, keep: tuple[str, ...] = ()) -> None:
        """Drop the recorded points, except those of the measures that start with one of `keep`.

        Raises:
          RunError: if the file cannot be written.
        """
        kept = [json.dumps(seal(point)) for point in self.points() if point["measure"].startswith(keep)]
        if (self.path / "evaluation.jsonl").exists():
            write_atomically(self.path / "evaluation.jsonl", "".join(f"{line}\n" for line in kept))

    def point(self, **values: Any) -> None:
        """Record one finished point of the evaluation.

        Raises:
          RunError: if it cannot be written.
        """
        self._append("evaluation.jsonl", seal({"seconds": round(self.seconds(), 3), **values}))

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        if paths.is_remote(self.path):  # the whole file again
            file = self.path / name
            before = file.read_bytes() if file.exists() else b""
            write_atomically(file, before + json.dumps(values).encode() + b"\n")
            return
        try:
            with open(self.path / name, "a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    torn = file.read(1) != b"\n"
                else:
                    torn = False
                file.write(b"\n" * torn + json.dumps(values).encode() + b"\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path / name}: {error.strerror}; {checkpoints.RESUME}") from error

    def _lines(self, name: str) -> list[Any]:
        """Return the parsed lines of a file; None for one that cannot be parsed."""
        file = self.path / name
        return [_parsed(text) for text in file.read_bytes().splitlines()] if file.exists() else []

    def result(self) -> dict[str, Any] | None:
        """Return the finished run's result.json, or None.

        Raises:
          RunError: if it is damaged.
        """
        file = self.path / "result.json"
        remedy = "remove it and type the command of that run again, which measures again what was not recorded"
        return records.read(file, remedy) if file.exists() else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json, with the digests of the arrays that a report reads beside it: the run is done.

        Raises:
          RunError: if it cannot be written.
        """
        beside = [self.path / name for name in ARRAYS if (self.path / name).exists()]
        files = {"files": {file.name: records.digest(file.read_bytes()) for file in beside}} if beside else {}
        sealed = seal({**result, **files}, records.SEAL)
        write_atomically(self.path / "result.json", json.dumps(sealed, indent=1))

    def close(self) -> None:
        """Close the files and release the lock."""
        if self._board is not None and self._board_writes():
            self._board.close()
        if self._lock is not None:
            self._lock.close()


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # the torn line of a killed writer, or a damaged one
        return None


def _older_metrics(line: Any) -> dict[str, Any] | None:
    """Return a line of metrics written before lines had digests; None for anything else."""
    numbers = isinstance(line, dict) and all(isinstance(value, int | float) for value in line.values())
    return line if numbers and isinstance(line.get("step"), int) else None
