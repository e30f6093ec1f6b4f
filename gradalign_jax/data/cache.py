"""A cache on disk for arrays that are slow to decode or generate, verified whenever it is read.

An entry is one `<key>-<name>.npy` per array and `<key>.json`, which holds the digest of each array and a
description of the arrays' source. Files are replaced atomically, the manifest last, so that no lock is needed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from absl import logging

from gradalign_jax.data import directories
from gradalign_jax.data.directories import Folder
from gradalign_jax.paths import local_copy, make_folder
from gradalign_jax.storage.atomic import remove_temporary_files, replacing

Arrays = dict[str, np.ndarray]
_ABANDONED = 86_400.0  # seconds without a change after which a temporary file has lost its writer

folder = directories.cache_root


def fetch(cache_dir: Folder, key: str, source: Mapping, build: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of an entry, from disk if they are intact and of the same source, else from `build()`.

    A damaged entry or an unwritable directory costs one warning and a rebuild.

    Args:
      cache_dir: the cache directory; None for the default of `directories.cache_root`.
      key: file name of the entry.
      source: JSON-serializable description of the input of `build`; an entry with another one is rebuilt.
      build: returns the arrays.
    """
    root = directories.cache_root(cache_dir)
    arrays = _read(root, key, source)
    if arrays is None:
        arrays = build()
        _write(root, key, source, arrays)
    return arrays


def _read(root: Path, key: str, source: Mapping) -> Arrays | None:
    try:
        text = (root / f"{key}.json").read_text(encoding="utf-8")
    except OSError:  # no entry; an unusable directory is reported by `_write`
        return None
    except ValueError as error:  # not UTF-8
        return _damaged(root, key, error)
    try:
        manifest = json.loads(text)
        if manifest["source"] != json.loads(json.dumps(source)):
            return None
        arrays = {}
        for name in manifest["sha256"]:
            with local_copy(root / f"{key}-{name}.npy") as file:
                arrays[name] = np.load(file)
        changed = [name for name, digest in manifest["sha256"].items() if _digest(arrays[name]) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        return _damaged(root, key, error)
    return _damaged(root, key, changed[0]) if changed else arrays


def _damaged(root: Path, key: str, cause: Exception | str) -> None:
    logging.warning("cache entry %s is damaged (%s): rebuilding it", root / key, cause)


def _write(root: Path, key: str, source: Mapping, arrays: Arrays) -> None:
    manifest = {"source": source, "sha256": {name: _digest(array) for name, array in arrays.items()}}
    text = json.dumps(manifest, indent=1).encode()
    try:
        make_folder(root)
        remove_temporary_files(root, _ABANDONED)
        for name, array in arrays.items():
            with replacing(root / f"{key}-{name}.npy") as file:
                np.save(file, array)
        with replacing(root / f"{key}.json") as file:
            file.write(text)
    except OSError as error:
        logging.warning("cannot write %s to the cache %s (%s): continuing without it", key, root, error)


def _digest(array: np.ndarray) -> str:
    # Shape and type are part of the content: the same bytes with another type are other data.
    header = f"{array.dtype.str}{array.shape}".encode()
    digest = hashlib.sha256(header)
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()
