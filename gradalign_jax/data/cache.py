"""Keeps arrays that are slow to make on disk, and never trusts what it reads back.

An entry is `<key>-<name>.npy` per array and `<key>.json`, which holds the digest of each array and a
description of the source the arrays came from. Files are replaced atomically, the manifest last.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from absl import logging

Arrays = dict[str, np.ndarray]
Folder = str | os.PathLike | None  # None: the default place


def folder(cache_dir: Folder = None) -> Path:
    """Returns the cache folder: the argument, or $XDG_CACHE_HOME/gradalign_jax, or ~/.cache/gradalign_jax."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradalign_jax"


def fetch(cache_dir: Folder, key: str, source: Mapping, build: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays of entry `key`, from disk if they are whole and from `source`, else from `build()`.

    Args:
      cache_dir: see `folder`.
      key: file name of the entry.
      source: a JSON-able description of what `build` reads; an entry made from another one is rebuilt.
      build: makes the arrays. A damaged entry or an unwritable folder costs one warning, nothing else.
    """
    root = folder(cache_dir)
    arrays = _read(root, key, source)
    if arrays is None:
        arrays = build()
        _write(root, key, source, arrays)
    return arrays


def _read(root: Path, key: str, source: Mapping) -> Arrays | None:
    try:
        text = (root / f"{key}.json").read_text()
    except OSError:  # no entry; a folder that cannot be used is reported by `_write`
        return None
    try:
        manifest = json.loads(text)
        if manifest["source"] != json.loads(json.dumps(source)):
            return None
        arrays = {name: np.load(root / f"{key}-{name}.npy") for name in manifest["sha256"]}
        damaged = [name for name, digest in manifest["sha256"].items() if _digest(arrays[name]) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        damaged = [str(error)]
    if damaged:
        logging.warning("cache entry %s is damaged (%s): building it again", root / key, damaged[0])
        return None
    return arrays


def _write(root: Path, key: str, source: Mapping, arrays: Arrays) -> None:
    manifest = {"source": source, "sha256": {name: _digest(array) for name, array in arrays.items()}}
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            _replace(root / f"{key}-{name}.npy", lambda file: np.save(file, array))
        _replace(root / f"{key}.json", lambda file: file.write(json.dumps(manifest, indent=1).encode()))
    except OSError as error:
        logging.warning("cannot keep %s in the cache %s (%s): going on without", key, root, error)


def _replace(path: Path, write: Callable) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(partial, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _digest(array: np.ndarray) -> str:
    # Shape and type belong to the content: the same bytes as another type are other data.
    header = f"{array.dtype.str}{array.shape}".encode()
    digest = hashlib.sha256(header)
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()
