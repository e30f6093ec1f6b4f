"""Directories and files on a local file system, or in a bucket: `gs://BUCKET/...`, `s3://BUCKET/...`.

A bucket has whole objects alone: no rename, append or lock. What is written there counts by its digests, and a
checkpoint by its manifest, which is written last. Imports no JAX.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gradalign_jax.errors import RunError

_PACKAGES = {"gs://": "gcsfs", "s3://": "s3fs"}


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether a path is in a bucket."""
    return os.fspath(path).startswith(tuple(_PACKAGES))


def as_path(path: str | os.PathLike) -> Path:
    """Return a `pathlib.Path`, or for a bucket an `epath.Path`, which has the same methods.

    Raises:
      RunError: if the package that reads this kind of bucket is not installed.
    """
    if not is_remote(path):
        return Path(path)
    os.environ.setdefault("EPATH_USE_TF", "false")  # fsspec, also where TensorFlow is installed
    scheme = os.fspath(path)[:5]
    try:
        import fsspec
        from etils import epath

        fsspec.get_filesystem_class(scheme[:2])
    except ImportError as error:
        raise RunError(
            f"{os.fspath(path)} needs the package {_PACKAGES[scheme]}: pip install 'gradalign_jax[cloud]'"
        ) from error
    for protocol in {scheme[:2], "gcs"}:  # another process may have written since a listing
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    return epath.Path(path)


def absolute(path: str | os.PathLike) -> Path:
    """Return an absolute path."""
    return as_path(path) if is_remote(path) else Path(path).absolute()


def real(path: str | os.PathLike) -> str:
    """Return the one name of a file or directory: without links, or without a slash at its end."""
    return os.fspath(path).rstrip("/") if is_remote(path) else os.path.realpath(path)


def is_folder(path: str | os.PathLike) -> bool:
    """Return whether a directory is there.

    Raises:
      RunError: as `as_path`.
    """
    return as_path(path).is_dir()


def make_folder(path: Path) -> None:
    """Make a directory and its parents; a bucket needs none.

    Raises:
      OSError: if it cannot be made.
    """
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def create_object(path: Path, content: str) -> None:
    """Write an object in a bucket.

    Raises:
      FileExistsError: if there is one.
    """
    import fsspec

    files, inside = fsspec.core.url_to_fs(os.fspath(path))
    files.pipe_file(inside, content.encode(), mode="create")


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Yield a local file with the content of `path`: itself, or a temporary copy of an object.

    Raises:
      OSError: if it cannot be read.
    """
    if not is_remote(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="gradalign_jax_", suffix=path.suffix) as file:
        file.write(path.read_bytes())
        file.flush()
        yield Path(file.name)
