"""Files that are either absent or whole, whenever the writer is killed."""

import os
import re
from contextlib import suppress
from pathlib import Path

from gradalign_jax.errors import RunError

# .NAME.PID, the name of a file while it is written.
_TEMPORARY = re.compile(r"\..+\.\d+")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name and rename it.

    Raises:
      RunError: if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise RunError(f"cannot write {path}: {error.strerror}; free space or choose another --workdir") from error


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files that killed writers left in a folder; the caller must be its only writer."""
    with suppress(OSError):  # a read-only directory
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)
