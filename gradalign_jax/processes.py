"""Several processes that run one task together: started by SLURM, Open MPI, a TPU pod, or by three variables.

Every process runs the same program on the same host data. Programs span the devices of all processes (`parallel`); the
first process writes the run's directory, each of the others a private copy that is thrown away.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gradalign_jax.errors import RunError
from gradalign_jax.paths import is_remote

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_HEARTBEAT_SECONDS = 30  # after which the others stop when a process has died
_SMALL = 2**24  # bytes; larger files are linked instead of copied, unless lines are appended to them


def _launched() -> bool:
    """Return whether a launcher that JAX knows started several processes."""
    counts = [os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return max(len(hosts), *map(int, counts)) > 1


def join() -> None:
    """Join the other processes of this run, if there are any; before JAX looks for devices.

    Raises:
      RunError: if the variables are incomplete, or the other processes do not start.
    """
    given = {name: os.environ[name] for name in (ADDRESS, COUNT, NUMBER) if os.environ.get(name)}
    arguments = {}
    if COUNT in given or NUMBER in given:
        if len(given) < 3 or not (given[COUNT].isdecimal() and given[NUMBER].isdecimal()):
            raise RunError(
                f"to run as one of several processes set {ADDRESS} to HOST:PORT of the first, {COUNT} to their number "
                f"and {NUMBER} to 0, 1, ...; now they are {given}"
            )
        if int(given[NUMBER]) >= int(given[COUNT]):
            raise RunError(f"{NUMBER}={given[NUMBER]} must be below {COUNT}={given[COUNT]}")
        arguments = {
            "coordinator_address": given[ADDRESS],
            "num_processes": int(given[COUNT]),
            "process_id": int(given[NUMBER]),
        }
    elif not _launched():
        return
    try:
        jax.distributed.initialize(
            **arguments, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS, shutdown_timeout_seconds=_HEARTBEAT_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes of this run did not find each other: {str(error).splitlines()[0]}") from error


def is_first() -> bool:
    """Return whether this process writes the run's directory. Initializes no device in a run of one process."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def check_shared(path: str | os.PathLike) -> None:
    """Refuse a directory that the processes of one run cannot share.

    Raises:
      RunError: in every process, if there are several and it is in a bucket.
    """
    if jax.distributed.is_initialized() and is_remote(path):
        raise RunError(f"--workdir={path} is in a bucket: a run of several processes needs a shared file system")


def wait(reason: str) -> None:
    """Wait until every process is here."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(reason)


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in any process; every process must call this."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(jax.numpy.asarray(flag)).any())


def least(value: int) -> int:
    """Return the smallest of the processes' values, to 7 digits; every process must call this."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(jax.numpy.asarray(value, "float32")).min())


def of_first(tree: Any) -> Any:
    """Return the first process's arrays; every process must call this."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def check_same(what: str, value: str) -> None:
    """Compare what the processes found in the run's directory; every process must call this.

    Raises:
      RunError: in every process, if they found different things.
    """
    if not jax.distributed.is_initialized():
        return
    digest = np.frombuffer(hashlib.blake2b(value.encode(), digest_size=8).digest(), np.uint32)
    if (multihost_utils.process_allgather(digest) != digest[None]).any():
        raise RunError(f"the processes of this run see different {what}: give all of them one --workdir, shared")


@contextmanager
def private_copy(path: Path) -> Iterator[Path]:
    """Yield a temporary directory with the files of `path`, links to the large ones; changes do not reach `path`."""

    def copy(source: str, target: str) -> None:
        copied = source.endswith(".jsonl") or os.path.getsize(source) <= _SMALL
        (shutil.copyfile if copied else os.symlink)(source, target)

    with tempfile.TemporaryDirectory(prefix="gradalign_jax_") as folder:
        inside = Path(folder) / path.name
        if path.exists():
            shutil.copytree(path, inside, copy_function=copy, ignore=shutil.ignore_patterns(".lock", "tensorboard"))
        yield inside
