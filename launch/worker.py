"""Identical workers that share a plan through a file system: each claims a run whose inputs are finished, and runs it.

A claimed run has a lease, the file `.lease` in its directory, which its worker renews. A lease that is not renewed has
lost its worker: another worker takes the run over, and the run resumes from its last checkpoint. Where a lease is lost
by mistake, the run's own lock still keeps two processes from writing it.
"""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradalign_jax import lease as lease_files
from launch.plan import Job

_LEASE = ".lease"
_HELD = "another process is writing"  # a run whose dead worker's process is still alive
# By these a run would join the runs of the workers beside it, as one run of several processes.
_GROUP = (
    *("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"),
    *("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
)


def work(
    jobs: Sequence[Job],
    commands: Mapping[str, Sequence[str]],
    root: Path,
    finished: Callable[[Path, Job], Any],
    expiry: float,
) -> int:
    """Run what is left of a plan beside other workers, until nothing is left; return the exit status.

    A run that failed while this worker lived is not tried again, nor are the runs that need it.
    """
    root.mkdir(parents=True, exist_ok=True)
    started, own, lost_here = lease_files.now(root), 0, set()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop)
    while True:
        left = [job for job in jobs if not finished(root, job)]
        lost = lost_here | {job.name for job in left if failure(root / job.name, started)}
        for job in left:  # in the plan's order, so that a loss reaches every run that needs it
            lost |= {job.name} if lost & set(job.needs) else set()
        left = [job for job in left if job.name not in lost]
        if not left:
            break
        waiting = {job.name for job in left}
        ready = (job for job in left if not waiting & set(job.needs))
        claims = ((job, lease_files.claim(root / job.name / _LEASE, expiry)) for job in ready)
        claimed = next(((job, lease) for job, lease in claims if lease), None)
        if claimed is None:
            time.sleep(min(10.0, expiry / lease_files.BEATS))
            continue
        job, lease = claimed
        try:
            if finished(root, job):  # between the look and the claim
                continue
            print(f"{job.name}: started", flush=True)
            outcome = execute(commands[job.name], root / job.name, lease, expiry / lease_files.BEATS)
            print(f"{job.name}: {outcome or 'finished'}", flush=True)
            own += not outcome
            lost_here |= {job.name} if outcome.startswith("failed") else set()
        finally:
            lease.release()
    print(f"nothing left to do: {own} runs finished here, {len(lost)} failed or need one that failed", flush=True)
    return 1 if lost else 0


def _stop(number: int, _: Any) -> None:
    raise SystemExit(143)


def execute(command: Sequence[str], folder: Path, lease: lease_files.Lease, beat: float) -> str:
    """Execute a run under its lease, its output in log.txt; return why it did not finish, "" if it did.

    The run ends when this process ends, however it ends (on Linux).
    """
    (folder / "failed.txt").unlink(missing_ok=True)
    (folder / "command.txt").write_text(shlex.join(command) + "\n")
    alone = {name: value for name, value in os.environ.items() if name not in _GROUP}
    with open(folder / "log.txt", "a") as log:
        before = log.tell()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=alone, preexec_fn=_end_with_parent)
    try:
        while process.poll() is None:
            try:
                process.wait(beat)
            except subprocess.TimeoutExpired:
                if not lease.renew():
                    return "taken over by another worker"
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if not process.returncode:
        return ""
    own = (folder / "log.txt").read_bytes()[before:].decode(errors="replace")
    lines = own.strip().splitlines()
    last = lines[-1] if lines else f"status {process.returncode}"
    if _HELD in own:
        time.sleep(beat)
        return "still written by its former worker, waiting"
    (folder / "failed.txt").write_text(f"{last}\n")
    return f"failed: {last}"


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def failure(folder: Path, since: float = 0.0) -> str:
    """Return the last line of a run that failed after `since`, "" if none did."""
    file = folder / "failed.txt"
    try:
        return (file.read_text().strip() or "failed") if file.stat().st_mtime >= since else ""
    except OSError:
        return ""


# ---- status


def status(
    jobs: Sequence[Job],
    root: Path,
    finished: Callable[[Path, Job], Any],
    hours: Mapping[str, tuple[float | None, str]],
    expiry: float,
) -> str:
    """Return the state of every run: counts, then where runs are running and since when, and why others failed.

    Args:
      jobs: the plan.
      root: directory of the runs.
      finished: returns a job's result, or None.
      hours: hours of a run by "dataset:task".
      expiry: seconds after which a lease has lost its worker.
    """
    running, failed, waiting, done = [], [], 0, 0
    for job in jobs:
        folder = root / job.name
        since = lease_files.age(folder / _LEASE) if folder.is_dir() else None
        if finished(root, job):
            done += 1
        elif since is not None and since < expiry:
            lease, (each, _) = lease_files.read(folder / _LEASE), hours[f"{job.dataset}:{job.task}"]
            minutes = (time.time() - lease.get("since", time.time())) / 60
            eta = "unknown" if each is None else f"{max(0.0, 60 * each - minutes):.0f} min"
            running.append(f"running  {job.name}  on {lease.get('worker')}, for {minutes:.0f} min, left {eta}")
        elif line := failure(folder):
            failed.append(f"failed   {job.name}  {line}")
        else:
            waiting += 1
    counts = f"{done} done, {len(running)} running, {waiting} waiting, {len(failed)} failed"
    return "\n".join([counts, *running, *failed])
