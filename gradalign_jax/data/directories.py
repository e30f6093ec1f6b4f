"""Directories given by arguments and environment variables, with or without a home directory."""

import functools
import os
import tempfile
from pathlib import Path

from absl import logging

from gradalign_jax.errors import DataError
from gradalign_jax.paths import as_path, is_remote

Folder = str | os.PathLike | None  # None: the default directory


def expand(path: str | os.PathLike) -> Path:
    """Return a path with its leading `~` expanded.

    Raises:
      DataError: the home directory that `~` stands for is unknown.
    """
    try:
        return as_path(path) if is_remote(path) else Path(path).expanduser()
    except RuntimeError as error:  # no HOME and no passwd entry, or no such user
        raise DataError(f"{path}: the home directory is unknown; set HOME or give the full path") from error


def cache_root(cache_dir: Folder = None) -> Path:
    """Return the cache directory: the argument, $XDG_CACHE_HOME/gradalign_jax or ~/.cache/gradalign_jax.

    Without a home directory the cache is a private directory under the system's temporary one.
    """
    if cache_dir:
        return expand(cache_dir)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return expand(base) / "gradalign_jax"
    try:
        return Path.home() / ".cache" / "gradalign_jax"
    except RuntimeError:
        return _temporary_cache()


def prepared_root(data_dir: Folder = None) -> Path:
    """Return the directory of prepared data sets: the argument, $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      DataError: the home directory is needed and unknown.
    """
    return expand(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


@functools.cache  # one warning, and one directory if it has to be a new one
def _temporary_cache() -> Path:
    root = Path(tempfile.gettempdir()) / f"gradalign_jax-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        status = root.lstat()
        # Cached programs are executed: a directory that another user can write to must not be read.
        private = status.st_uid == os.getuid() and not status.st_mode & 0o077
    except OSError:
        private = False
    if not private:
        root = Path(tempfile.mkdtemp(prefix="gradalign_jax-"))
    logging.warning("no home directory: the cache is %s; set XDG_CACHE_HOME to choose another", root)
    return root
