"""launch/worker.py: leases, and workers that are killed or slow."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradalign_jax import lease as lease_files
from launch import paper as launcher
from launch import plan, worker

ROOT = Path(__file__).resolve().parents[1]
EXPIRY = 1.5

# Stands for a run: it locks its directory, works for a while, and notes that it finished.
_RUN = """
import fcntl, json, os, sys, time
os.chdir(sys.argv[1])
lock = open(".lock", "a")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit("another process is writing this")
for needed in sys.argv[4:]:
    assert os.path.exists(needed + "/result.json"), needed
open("starts", "a").write("1")
time.sleep(float(sys.argv[3]))
open("ends", "a").write("1")
open("result.json", "w").write(json.dumps({"dataset": sys.argv[2], "seconds": 1}))
"""
_WORKER = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from launch import paper, worker
from test_worker import EXPIRY, jobs, stand_ins
sys.exit(worker.work(jobs(), stand_ins(Path(sys.argv[1]), 1.0), Path(sys.argv[1]), paper.finished, EXPIRY))
"""


def jobs():
    """The mini plan's rows of Table 2 on two data sets: on one, every run needs an estimate of Δx."""
    return plan.plan(plan.MINI, ["mnist35", "spheres"], table="2")


def stand_ins(root, seconds, fails=()):
    start = [sys.executable, "-Sc", _RUN]
    commands = {
        job.name: [*start, str(root / job.name), job.dataset, str(seconds), *(str(root / name) for name in job.needs)]
        for job in jobs()
    }
    return commands | {name: [sys.executable, "-Sc", "import sys; sys.exit('no luck')"] for name in fails}


def test_a_lease_has_one_owner_until_it_expires(tmp_path):
    lease = lease_files.claim(tmp_path / "run" / ".lease", EXPIRY)
    assert lease_files.claim(tmp_path / "run" / ".lease", EXPIRY) is None
    assert lease.renew()
    old = time.time() - 10
    os.utime(lease.path, (old, old))
    other = lease_files.claim(tmp_path / "run" / ".lease", EXPIRY)
    assert other is not None
    assert not lease.renew()
    lease.release()  # no longer its own
    assert lease_files.claim(tmp_path / "run" / ".lease", EXPIRY) is None
    other.release()
    assert not list((tmp_path / "run").iterdir())


def test_a_lease_that_was_taken_over_meanwhile_is_put_back(tmp_path, monkeypatch):
    lease = lease_files.claim(tmp_path / ".lease", EXPIRY)
    content = lease.path.read_text()
    rename = os.rename

    def late(source, target):  # another worker's new lease lies there by now
        lease.path.write_text(content.replace(lease.token, "another"))
        rename(source, target)

    monkeypatch.setattr(lease_files, "age", lambda path: 10.0)
    monkeypatch.setattr(os, "rename", late)
    assert lease_files.claim(tmp_path / ".lease", EXPIRY) is None
    assert json.loads(lease.path.read_text())["token"] == "another"
    assert len(list(tmp_path.iterdir())) == 1


def test_four_workers_of_which_two_are_killed_and_one_is_slow_finish_every_run_once(tmp_path):
    plan_of_runs = jobs()
    workers = [
        subprocess.Popen([sys.executable, "-c", _WORKER, str(tmp_path)], stdout=subprocess.DEVNULL) for _ in range(4)
    ]
    try:
        while len(list(tmp_path.rglob("starts"))) < 3:
            time.sleep(0.02)
        holders = {json.loads(file.read_text())["worker"] for file in tmp_path.rglob(".lease")}
        busy = [each for each in workers if any(holder.split(":")[1] == str(each.pid) for holder in holders)]
        killed, slow = busy[:2], busy[2]
        for each in killed:
            each.kill()
            each.wait()
        slow.send_signal(signal.SIGSTOP)  # its run goes on, its lease expires
        time.sleep(2 * EXPIRY)
        slow.send_signal(signal.SIGCONT)
        statuses = [each.wait(60) for each in workers]
    finally:
        for each in workers:
            each.kill()
            each.wait()
    assert sorted(statuses) == [-9, -9, 0, 0]
    assert all(launcher.finished(tmp_path, job) for job in plan_of_runs)
    assert {(tmp_path / job.name / "ends").read_text() for job in plan_of_runs} == {"1"}
    assert any((tmp_path / job.name / "starts").read_text() == "11" for job in plan_of_runs)  # taken over
    assert not list(tmp_path.rglob(".lease*"))


@pytest.mark.filterwarnings("ignore:os.fork", "ignore::pytest.PytestUnraisableExceptionWarning")  # a worker has no JAX
def test_a_failure_stops_the_runs_that_need_it_and_status_shows_it(tmp_path, capsys):
    first = next(job for job in jobs() if job.name == "mnist35/vrgan/seed0")
    others = [job for job in jobs() if job.name != first.name]
    commands = stand_ins(tmp_path, 0, fails=[first.name])
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    try:
        assert worker.work(jobs(), commands, tmp_path, launcher.finished, EXPIRY) == 1
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGUSR1, before[1])
    done = [job for job in others if launcher.finished(tmp_path, job)]
    assert done
    assert not any(first.name in job.needs for job in done)
    assert f"{first.name}: failed: no luck" in capsys.readouterr().out
    waits = next(job for job in others if job not in done)
    assert first.name in waits.needs
    lease = lease_files.claim(tmp_path / waits.name / ".lease", EXPIRY)
    hours = launcher.hours(jobs(), tmp_path, {})
    shown = worker.status(jobs(), tmp_path, launcher.finished, hours, EXPIRY).splitlines()
    assert shown[0] == f"{len(done)} done, 1 running, {len(others) - len(done) - 1} waiting, 1 failed"
    assert shown[1].startswith("running  mnist35/")
    assert lease_files.name() in shown[1]
    assert shown[2] == f"failed   {first.name}  no luck"
    lease.release()


def test_a_worker_that_is_stopped_ends_its_run_and_gives_it_back(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", _WORKER.replace("1.0", "60"), str(tmp_path)])
    try:
        while not list(tmp_path.rglob("starts")):
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(20) == 143
    finally:
        process.kill()
        process.wait()
    assert not list(tmp_path.rglob(".lease*"))
    assert not list(tmp_path.rglob("ends"))


@pytest.mark.parametrize("action", ["--worker", "--status"])
def test_the_command_line_knows_it(action, tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(worker, "work", lambda *arguments: called.append(arguments) or 0)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    arguments = ["--scale=mini", "--only=spheres", f"--root={tmp_path}", action, "--lease-seconds=9"]
    assert launcher.main(arguments) == 0
    if action == "--worker":
        assert called[0][2] == tmp_path
        assert called[0][4] == 9
    else:
        assert " 0 running, " in capsys.readouterr().out


def test_a_lease_outlives_a_failed_read_and_is_lost_to_another(tmp_path):
    lease = lease_files.claim(tmp_path / ".lease", 100)
    content = lease.path.read_text()
    lease.path.write_text("")  # another's file, before its content is written
    assert lease.renew()
    lease.path.write_text(content)
    assert lease.renew()
    lease.path.unlink()
    assert not lease.renew()
    assert lease_files.claim(tmp_path / ".lease", 100).token != lease.token
    assert not lease.renew()


@pytest.mark.filterwarnings("ignore:os.fork", "ignore::pytest.PytestUnraisableExceptionWarning")  # a worker has no JAX
def test_a_run_does_not_join_the_runs_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    lease = lease_files.claim(tmp_path / ".lease", 100)
    command = [sys.executable, "-c", "import os; print([name for name in os.environ if 'NUM' in name])"]
    assert worker.execute(command, tmp_path, lease, 5) == ""
    assert "JAX_NUM_PROCESSES" not in (tmp_path / "log.txt").read_text()
    assert "SLURM_STEP_NUM_TASKS" not in (tmp_path / "log.txt").read_text()
