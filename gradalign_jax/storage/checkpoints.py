"""Checkpoints in a folder: step N in N/, written by Orbax, with a manifest N.json, which holds the files' hashes.

A checkpoint counts once its manifest is there, and one whose files differ from their hashes is skipped. In a bucket,
which Orbax cannot write without its package, files are copied from and to a temporary directory.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from gradalign_jax import paths, records
from gradalign_jax.errors import RunError, first_line
from gradalign_jax.records import seal, unseal
from gradalign_jax.storage.atomic import write_atomically

KEEP = 2
RESUME = "free space and type the same command again to resume from the last checkpoint"


def save(folder: Path, step: int, tree: Any, **record: Any) -> None:
    """Save a tree of arrays as checkpoint `step`, and remove all but the newest `KEEP`.

    Args:
      folder: of all checkpoints.
      step: number of finished steps.
      tree: arrays on the host.
      record: JSON values that the manifest also holds.

    Raises:
      RunError: if it cannot be written; the checkpoints before it stay.
    """
    target, manifest = folder / str(step), folder / f"{step}.json"
    manifest.unlink(missing_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            local = target
            if paths.is_remote(target):
                local = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gradalign_jax_"))) / str(step)
            with _silent(), _checkpointer() as checkpointer:
                checkpointer.save(local, jax.tree.map(np.asarray, tree), force=True)
            files = _hashes(local)
            if local is not target:
                for name in files:
                    write_atomically(target / name, (local / name).read_bytes())
        write_atomically(manifest, json.dumps(seal({"files": files, **record})))
    except RunError:  # from writing the manifest
        _remove_uncounted(folder)
        raise
    except (OSError, ValueError) as error:  # Orbax's storage reports a full disk as a ValueError
        _remove_uncounted(folder)
        raise RunError(f"cannot write checkpoint {step} in {folder}: {_cause(error)}; {RESUME}") from error
    for old in steps(folder)[:-KEEP]:
        (folder / f"{old}.json").unlink()
    _remove_uncounted(folder)


def restore(folder: Path, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """Return the newest intact checkpoint and its manifest, or None; damaged ones are logged and skipped.

    Args:
      folder: of all checkpoints.
      like: arrays in the structure of the checkpoint.

    Raises:
      RunError: if there are checkpoints and all are damaged.
    """
    for step in reversed(steps(folder)):
        manifest = read_manifest(folder, step)
        with _on_disk(folder / str(step), manifest) as local:
            if manifest is None or _hashes(local) != manifest["files"]:
                logging.warning("checkpoint %d in %s is damaged; trying the one before it", step, folder)
                continue
            with _checkpointer() as checkpointer:
                return checkpointer.restore(local, jax.tree.map(np.asarray, like)), manifest
    if steps(folder):
        raise RunError(f"every checkpoint in {folder} is damaged: remove that folder to start again")
    return None


def steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints that count, ascending."""
    return sorted(int(file.stem) for file in folder.glob("*.json") if file.stem.isdecimal())


def read_manifest(folder: Path, step: int) -> dict[str, Any] | None:
    """Return a checkpoint's manifest; None if it is damaged."""
    try:
        record = json.loads((folder / f"{step}.json").read_text())
    except (OSError, ValueError):
        return None
    if isinstance(record, dict) and record.keys() == {"seconds", "files"}:  # of an older run, without a digest
        return record if isinstance(record["seconds"], int | float) else None
    return unseal(record)


def _remove_uncounted(folder: Path) -> None:
    """Remove checkpoints without a manifest, half-written ones among them."""
    with contextlib.suppress(FileNotFoundError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.with_name(f"{entry.name}.json").exists():
                if paths.is_remote(entry):
                    entry.rmtree(missing_ok=True)
                else:
                    shutil.rmtree(entry, ignore_errors=True)


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): records.digest(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def _on_disk(checkpoint: Path, manifest: Mapping[str, Any] | None) -> Iterator[Path]:
    """Yield a checkpoint's directory; of one in a bucket, a temporary copy of the files that are there."""
    if not paths.is_remote(checkpoint):
        yield checkpoint
        return
    with tempfile.TemporaryDirectory(prefix="gradalign_jax_") as temporary:
        copy = Path(temporary) / checkpoint.name
        for name in manifest["files"] if manifest else ():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                (copy / name).write_bytes((checkpoint / name).read_bytes())
        yield copy


def _checkpointer() -> Any:
    """Return Orbax's checkpointer of this process alone: where there are several, each has its own directory."""
    import orbax.checkpoint as ocp  # slow to import, and an evaluation needs none

    number = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(number, {number}, f"process_{number}")
    # Directories made in the background are announced to all processes under one name, which two checkpoints share.
    directly = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    return ocp.StandardCheckpointer(async_options=directly, multiprocessing_options=alone)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Orbax from logging the traceback of each of its threads: the error it raises is reported in one line."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _cause(error: Exception) -> str:
    """Return one line from Orbax's long report on why a checkpoint cannot be written."""
    if "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):  # TensorStore's name for a full disk
        return "No space left on device"
    return first_line(error)[:200]
