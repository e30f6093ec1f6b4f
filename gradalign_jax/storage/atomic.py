"""Files that are either absent or whole, whenever the writer is killed."""

import io
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gradalign_jax.errors import RunError
from gradalign_jax.paths import create_object, is_remote

# .NAME.NUMBER, the name of a file while it is written.
_TEMPORARY = re.compile(r"\..+\.\d+")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing, and rename it to `path` at the end of the context.

    An object in a bucket is written as a whole at the end of the context.

    Raises:
      OSError: if the file cannot be written; nothing is left behind.
    """
    if is_remote(path):
        content = io.BytesIO()
        yield content
        path.write_bytes(content.getvalue())
        return
    temporary = path.with_name(f".{path.name}.{secrets.randbits(64)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file, or nothing.

    Raises:
      RunError: if the file cannot be written.
    """
    try:
        with replacing(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another --workdir"
        ) from error


def create(path: Path, content: str) -> None:
    """Write a whole file unless there is one; of several processes, one succeeds.

    Raises:
      RunError: if the file cannot be written.
    """
    if is_remote(path):
        with suppress(FileExistsError):
            create_object(path, content)
        return
    temporary = path.with_name(f".{path.name}.{secrets.randbits(64)}")
    write_atomically(temporary, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: Path, older: float = 0.0) -> None:
    """Remove the temporary files that killed writers left in a folder.

    Args:
      folder: the folder; nothing happens if it is missing or read-only.
      older: seconds since a file's last change; 0 only where the caller is the folder's only writer.
    """
    if is_remote(folder):
        return
    with suppress(OSError):
        for path in folder.iterdir():
            kept = older and time.time() - path.stat().st_mtime < older
            if _TEMPORARY.fullmatch(path.name) and path.is_file() and not kept:
                path.unlink(missing_ok=True)
