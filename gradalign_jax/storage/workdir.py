"""A run's directory: the only file that writes one.

    config.json          the resolved config
    checkpoints/N/       Orbax; N.json beside it holds the run's seconds and the hashes that make step N count as saved
    metrics.jsonl        one line per log interval and per epoch; tensorboard/ holds the same
    evaluation.jsonl     finished points of the final evaluation
    result.json, *.png   the outcome; pictures.npz holds what the pictures show, images.csv a line per test image

Killed at any instant and started again with the same command, a run goes on from the last whole checkpoint.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from gradalign_jax.errors import RunError

KEEP = 2
# Keys that change where, how fast or how visibly a run goes, but not what it computes.
FREE_KEYS = ("devices", "data.dir", "data.cache", "data.folder", "train.checkpoint_minutes", "evaluate.block")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that is either absent or whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}; free space or choose another --workdir") from error


def _read_json(path: Path, default: Any = None) -> Any:
    """The content of a JSON file; of a damaged one `default`, or an error that names it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        if default is None:
            raise RunError(f"{path} is damaged ({error}): remove it, or choose another --workdir") from error
        return default


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Workdir:
    """One run's directory, held by one writer.

    Args:
      path: made if it is missing.
      config: the resolved config as plain data; a directory of another config is refused, differing keys named.

    Raises:
      RunError: if the directory cannot be written, belongs to another config, or has a live writer.
    """

    def __init__(self, path: str | os.PathLike, config: Mapping[str, Any]):
        self.path = Path(path).absolute()
        self.checkpoints = self.path / "checkpoints"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a")  # noqa: SIM115 (held for the life of the run)
        except OSError as error:
            raise RunError(f"cannot write --workdir={path}: {error.strerror}; choose another one") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another process is writing {path}: stop it or choose another --workdir") from error
        self._board, self._started = None, time.monotonic()
        try:
            self._claim(json.loads(json.dumps(config)))
            self._go_on_from(max((point["seconds"] for point in self.points()), default=0.0))
        except RunError:
            self._lock.close()  # a corrected call in the same process may have it
            raise

    def _claim(self, config: dict[str, Any]) -> None:
        file = self.path / "config.json"
        if file.exists():
            before, now = (dict(_flatten(tree)) for tree in (_read_json(file), config))
            changed = [
                f"{key} ({before.get(key)!r} -> {now.get(key)!r})"
                for key in sorted(before.keys() | now.keys())
                if before.get(key) != now.get(key) and key not in FREE_KEYS
            ]
            if changed:
                raise RunError(
                    f"{self.path} holds a run with another config: {', '.join(changed)}; "
                    "type that run's command again, or choose another --workdir"
                )
        write_atomically(file, json.dumps(config, indent=1, sort_keys=True))

    def seconds(self) -> float:
        """How long the run has worked, earlier starts up to what they last saved included."""
        return time.monotonic() - self._started

    def _go_on_from(self, seconds: float) -> None:
        """Counts what earlier starts took, where that is more than is counted already."""
        self._started = min(self._started, time.monotonic() - seconds)

    # ---- checkpoints

    def save(self, step: int, tree: Any) -> None:
        """Saves a tree of arrays as checkpoint `step`. It counts once its hashes stand beside it."""
        import orbax.checkpoint as ocp

        folder = self.checkpoints / str(step)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(folder, jax.tree.map(np.asarray, tree), force=True)
        except (OSError, ValueError) as error:  # Orbax's storage reports a full disk as a ValueError
            for left in self.checkpoints.glob(f"{step}*"):
                shutil.rmtree(left, ignore_errors=True)
            raise RunError(
                f"cannot write checkpoint {step} in {self.checkpoints}: {str(error).splitlines()[0][:200]}; free space "
                "and type the same command: the run goes on from the checkpoint before"
            ) from error
        manifest = {"seconds": self.seconds(), "files": _hashes(folder)}
        write_atomically(self.checkpoints / f"{step}.json", json.dumps(manifest))
        for old in self._steps()[:-KEEP]:
            (self.checkpoints / f"{old}.json").unlink()
        for entry in self.checkpoints.iterdir():  # those without a manifest, half-written ones among them
            if entry.is_dir() and not entry.with_name(f"{entry.name}.json").exists():
                shutil.rmtree(entry, ignore_errors=True)

    def _steps(self) -> list[int]:
        return sorted(int(file.stem) for file in self.checkpoints.glob("*.json"))

    def restore(self, like: Any) -> Any | None:
        """The newest whole checkpoint in the structure of `like`, or None. Names damaged ones and goes past them."""
        import orbax.checkpoint as ocp

        for step in reversed(self._steps()):
            folder = self.checkpoints / str(step)
            manifest = _read_json(self.checkpoints / f"{step}.json", default={})
            if _hashes(folder) != manifest.get("files"):
                logging.warning("checkpoint %d in %s is damaged; trying the one before it", step, self.checkpoints)
                continue
            self._go_on_from(manifest["seconds"])
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(folder, jax.tree.map(np.asarray, like))
        if self._steps():
            raise RunError(f"every checkpoint in {self.checkpoints} is damaged: remove that folder to start again")
        return None

    # ---- metrics and results

    def open_metrics(self, step: int) -> None:
        """Drops the metrics after `step`, those of work that a kill undid, and opens for more."""
        from tensorboardX import SummaryWriter

        kept = [line for line in self._lines("metrics.jsonl") if line["step"] <= step]
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def metrics(self, step: int, **values: float) -> None:
        """One line of metrics.jsonl, and the same scalars for TensorBoard."""
        self._append("metrics.jsonl", {"step": step, **values})
        if not self._board_writes():  # its queue would fill up, and then block for ever
            raise RunError(
                f"cannot write {self.path / 'tensorboard'}: free space and type the same command: the run goes on from "
                "its last checkpoint"
            )
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, step)

    def _board_writes(self) -> bool:
        """Whether the thread that writes TensorBoard's files is alive; it dies of a full disk without telling."""
        return self._board.file_writer.event_writer._worker.is_alive()

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return self._lines("metrics.jsonl")

    def points(self) -> list[dict[str, Any]]:
        """The finished points of the evaluation, those left out whose line is damaged."""
        lines = ({"digest": "", **line} for line in self._lines("evaluation.jsonl"))
        return [line for line in lines if line.pop("digest") == _digest(line)]

    def remembered(self) -> Callable[..., Any]:
        """`value(measure, epsilon, first, compute)`: what an earlier start recorded, else computed and recorded now."""
        done = {(p["measure"], p.get("epsilon"), p.get("first")): p["value"] for p in self.points()}

        def value(measure: str, epsilon: float | None, first: int, compute: Callable[[], Any]) -> Any:
            key = (measure, epsilon, first)
            if key not in done:
                done[key] = compute()
                self.point(measure=measure, epsilon=epsilon, first=first, value=done[key])
            return done[key]

        return value

    def forget_points(self) -> None:
        """Drops the evaluation's points: they belong to another classifier."""
        (self.path / "evaluation.jsonl").unlink(missing_ok=True)

    def point(self, **values: Any) -> None:
        """Records one finished point of the evaluation."""
        values = json.loads(json.dumps({"seconds": round(self.seconds(), 3), **values}))
        self._append("evaluation.jsonl", {**values, "digest": _digest(values)})

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        try:
            with open(self.path / name, "a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    torn = file.read(1) != b"\n"
                else:
                    torn = False
                file.write(b"\n" * torn + json.dumps(values).encode() + b"\n")
        except OSError as error:
            raise RunError(
                f"cannot write {self.path / name}: {error.strerror}; free space and type it again"
            ) from error

    def _lines(self, name: str) -> list[dict[str, Any]]:
        file = self.path / name
        lines = []
        for text in file.read_text(errors="replace").splitlines() if file.exists() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # the torn line of a killed writer
                continue
        return [line for line in lines if isinstance(line, dict)]

    def result(self) -> dict[str, Any] | None:
        """The finished run's result.json, or None."""
        file = self.path / "result.json"
        return _read_json(file) if file.exists() else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json: the run is done."""
        write_atomically(self.path / "result.json", json.dumps(result, indent=1))

    def close(self) -> None:
        """Lets another writer in."""
        if self._board is not None and self._board_writes():
            self._board.close()
        self._lock.close()
