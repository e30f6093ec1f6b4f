"""Several processes that run one task: equal to one process with as many devices, and resumed after one was killed."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradalign_jax import processes, records
from gradalign_jax.errors import RunError

ROOT = Path(__file__).resolve().parents[1]
ARGUMENTS = (
    *("--config=configs/spheres.py:pgd,smoke", "--config.train.epochs=4", "--config.train.steps_per_epoch=4"),
    *("--config.train.log_every=2", "--config.validate.every_epochs=4", "--config.attack.steps=2"),
    *("--config.evaluate.images=20", "--config.evaluate.block=10", "--config.train.checkpoint_minutes=.0001"),
    *("--config.validate.epsilons=(.005,.02)", "--config.evaluate.linf_epsilons=(.005,.02)"),
    "--config.evaluate.l2_epsilons=(.1,.4)",
)


def start(workdir, log, devices=1, **variables):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    command = [sys.executable, "-m", "gradalign_jax.main", *ARGUMENTS, f"--workdir={workdir}"]
    environment = os.environ | variables | {"XLA_FLAGS": flags}
    with open(log, "w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=file)


def of_two():
    """The variables of two processes that join."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [{processes.ADDRESS: address, processes.COUNT: "2", processes.NUMBER: str(n)} for n in range(2)]


def start_pair(workdir, logs, second=None):
    folders = (workdir, second or workdir)
    return [start(folders[n], logs[n], **variables) for n, variables in enumerate(of_two())]


def test_two_processes_equal_two_devices_even_if_one_is_killed(tmp_path):
    logs = [tmp_path / f"{name}.log" for name in ("first", "second", "alone")]
    alone = start(tmp_path / "alone", logs[2], devices=2)
    assert alone.wait(300) == 0, logs[2].read_text()[-2000:]
    first, second = start_pair(tmp_path / "pair", logs[:2])
    while not list((tmp_path / "pair" / "checkpoints").glob("*.json")):
        assert first.poll() is None, logs[0].read_text()[-2000:]
        time.sleep(0.02)
    second.kill()
    assert first.wait(60) != 0
    assert "another process of this run has ended: start all of them again" in logs[0].read_text()
    assert second.wait(60) != 0
    for process, log in zip(start_pair(tmp_path / "pair", logs[:2]), logs, strict=False):
        assert process.wait(300) == 0, log.read_text()[-2000:]
    one, two = (tmp_path / "alone", tmp_path / "pair")
    weights = [(folder / "classifier.safetensors").read_bytes() for folder in (one, two)]
    assert weights[0] == weights[1]
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    for result in results:
        result.pop("seconds")
        result.pop("seal")  # the digest of all, the seconds too
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({processes.COUNT: "2"}, "to run as one of several processes set"),
        ({processes.ADDRESS: "localhost:1", processes.COUNT: "two", processes.NUMBER: "0"}, "'two'"),
        ({processes.ADDRESS: "localhost:1", processes.COUNT: "2", processes.NUMBER: "2"}, "must be below"),
    ],
)
def test_incomplete_variables_are_refused(variables, words, monkeypatch):
    for name in (processes.ADDRESS, processes.COUNT, processes.NUMBER):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=words):
        processes.join()


def test_processes_with_directories_of_their_own_are_refused(tmp_path):
    """As on machines whose --workdir is a local disk: the second one has a point that the first has not."""
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    second = tmp_path / "second"
    second.mkdir()
    point = {"measure": "clean", "epsilon": None, "first": 0, "value": {}, "seconds": 1.0}
    (second / "evaluation.jsonl").write_text(json.dumps(records.seal(point)) + "\n")
    pair = start_pair(tmp_path / "first", logs, second=second)
    assert [process.wait(300) for process in pair] == [2, 2]
    # The one that ends first may be all that the other sees.
    assert any("see different files in it: give all of them one --workdir" in log.read_text() for log in logs)


def test_unequal_cards_get_equal_blocks():
    program = (
        "import jax; from gradalign_jax import memory, processes; from gradalign_jax.ops import platform\n"
        "processes.join()\n"
        "memory.capacity = lambda device: int(16e9) * (1 + jax.process_index())\n"
        "with platform.target('gpu'): print('images:', memory.block('evaluate', (32, 32, 3), jax.devices()))"
    )
    command = [sys.executable, "-c", program]
    pair = [subprocess.Popen(command, env=os.environ | own, stdout=subprocess.PIPE, text=True) for own in of_two()]
    printed = [re.search(r"images: (\d+)", process.communicate(timeout=60)[0])[1] for process in pair]  # beside Gloo's
    assert printed == [str(int(0.6 * 16e9 / 10.8e6))] * 2


def test_a_private_copy_changes_nothing(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("1\n" * 2**23 + "1\n")  # larger than what is copied of other files
    (run / ".lock").touch()
    with open(run / "checkpoints" / "large", "wb") as large:
        large.truncate(2**24 + 1)
    with processes.private_copy(run) as copy:
        assert sorted(path.name for path in copy.rglob("*")) == ["checkpoints", "large", "metrics.jsonl"]
        assert (copy / "checkpoints" / "large").is_symlink()
        (copy / "checkpoints" / "large").unlink()
        with open(copy / "metrics.jsonl", "a") as file:
            file.write("2\n")
    assert not copy.exists()
    assert "2" not in (run / "metrics.jsonl").read_text()
    assert (run / "checkpoints" / "large").stat().st_size == 2**24 + 1
    with processes.private_copy(tmp_path / "absent") as copy:
        assert not copy.exists()
