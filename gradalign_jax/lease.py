"""Leases: files by which processes, on as many machines as you like, share work through a file system or a bucket.

The holder renews its lease; one that is not renewed has lost its holder, and another process takes it over. On a file
system, ages are differences of times that the file system itself records, so that the machines' clocks do not matter.
In a bucket a lease holds the time of its last renewal: there the clocks must agree to a few seconds, and two processes
that take over the same lease at the same instant may both go on. So the work under a lease must not depend on who does
it, or how often. Imports no JAX.
"""

import contextlib
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gradalign_jax.paths import create_object, is_remote, make_folder

BEATS = 6  # renewals in the time after which a lease expires


class Lease(NamedTuple):
    """A claim by this process.

    path: the file.
    token: its content, which no other claim has.
    """

    path: Path
    token: str

    def renew(self) -> bool:
        """Renew the lease; return False if another process has taken it over."""
        try:
            content = json.loads(self.path.read_text())
            if content["token"] != self.token:
                return False
            if is_remote(self.path):
                self.path.write_text(json.dumps(content | {"renewed": time.time()}))
            else:
                os.utime(self.path)
        except FileNotFoundError:
            return False
        except (OSError, ValueError):  # of a network file system, or another's lease being written: the next beat sees
            pass
        return True

    def release(self) -> None:
        """Give the lease back."""
        if read(self.path).get("token") == self.token:
            self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def held(self, expiry: float) -> Iterator["Lease"]:
        """Renew the lease in the background, and release it at the end of the context."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(expiry / BEATS):
                with contextlib.suppress(Exception):  # of a bucket's package: the next beat tries again
                    if not self.renew():
                        return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()
            self.release()


def claim(path: Path, expiry: float) -> Lease | None:
    """Claim the lease in a file; None if a live process has it.

    Args:
      path: the file; its folder is created if it is missing.
      expiry: seconds after which a lease that was not renewed has lost its holder.
    """
    make_folder(path.parent)
    expired = read(path).get("token")  # before its age: a lease that is written in between is not expired
    if (since := age(path)) is not None:
        if since < expiry:
            return None
        if is_remote(path):
            path.unlink(missing_ok=True)
        elif not _put_aside(path, expired):
            return None
    lease = Lease(path, secrets.token_hex(8))
    content = json.dumps({"token": lease.token, "worker": name(), "since": time.time()})
    try:
        if is_remote(path):
            create_object(path, content)
        else:
            with open(path, "x") as file:
                file.write(content)
    except FileExistsError:
        return None
    return lease


def _put_aside(path: Path, expired: str | None) -> bool:
    """Remove an expired lease; return False where another process was faster."""
    aside = path.with_name(f".{path.name.lstrip('.')}.{secrets.randbits(64)}")
    try:
        os.rename(path, aside)  # of several processes, one succeeds
        if read(aside).get("token") != expired:  # it was taken over since the look
            os.rename(aside, path)
            return False
        aside.unlink()
    except FileNotFoundError:
        return False
    return True


def read(path: Path) -> dict[str, Any]:
    """Return the content of a lease, {} where there is none."""
    try:
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def age(path: Path) -> float | None:
    """Return the seconds since a lease's last renewal; None if there is no such file."""
    if is_remote(path):
        content = read(path)
        return time.time() - content.get("renewed", content["since"]) if "since" in content else None
    try:
        changed = path.stat().st_mtime
    except FileNotFoundError:
        return None
    return now(path.parent) - changed


def now(folder: Path) -> float:
    """Return the time of a folder's file system; that of this machine where the folder is read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()


def name() -> str:
    """Return this process's name, its machine and number, with the SLURM task if there is one."""
    task = os.environ.get("SLURM_JOB_ID", "")
    return f"{socket.gethostname()}:{os.getpid()}{f' (job {task})' if task else ''}"
