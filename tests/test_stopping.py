"""Signals: the running chunk is finished and saved, and the next start ends in the same bits."""

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import chex
import pytest

from gradalign_jax import stopping
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.tasks import classifier
from test_runs import last_checkpoint, lines, small, start

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def listening(monkeypatch):
    """The handlers of a run, and those of pytest afterwards."""
    before = {number: signal.getsignal(number) for number in stopping._STATUS}
    monkeypatch.setattr(stopping, "_answer", stopping._RAISE)
    monkeypatch.setattr(stopping, "_received", None)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    stopping.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def sent_by(function, number, call):
    """`function`, which first sends the signal to this process the `call`-th time it is called."""
    calls = []

    def sending(*arguments, **options):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    return sending


@pytest.mark.parametrize(
    ("number", "owner", "name", "call", "step"),
    [
        (signal.SIGTERM, Workdir, "metrics", 1, 8),  # the line of steps 1-4, while steps 5-8 run
        (signal.SIGUSR1, Workdir, "point", 2, 12),  # within the first validation
        (signal.SIGINT, classifier.ClassifierRun, "validate", 3, 36),
        (signal.SIGTERM, Workdir, "point", 15, 36),  # within the test
    ],
    ids=["chunk", "validation", "last validation", "test"],
)
def test_a_stopped_run_ends_in_the_same_bits(number, owner, name, call, step, tmp_path, monkeypatch):
    config = small("baseline")
    whole = start(tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, sent_by(getattr(owner, name), number, call))
        with pytest.raises(stopping.Stop) as stop:
            start(tmp_path / "stopped", config)
    assert stop.value.status == {signal.SIGINT: 130}.get(number, 143)
    monkeypatch.setattr(stopping, "_received", None)
    workdir = Workdir(tmp_path / "stopped", config.to_dict())
    assert f"training up to step {step}" in workdir.saved()
    workdir.close()
    resumed = start(tmp_path / "stopped", config)
    chex.assert_trees_all_equal(
        last_checkpoint(tmp_path / "whole", config), last_checkpoint(tmp_path / "stopped", config)
    )
    assert lines(tmp_path / "whole") == lines(tmp_path / "stopped")
    del whole["seconds"], resumed["seconds"]
    assert whole == resumed


def test_a_deferred_signal_waits_and_a_second_interrupt_does_not():
    with pytest.raises(stopping.Stop, match="SIGTERM"), stopping.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.requested()
    with pytest.raises(stopping.Stop, match="SIGINT"), stopping.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second interrupt was deferred")


def test_a_signal_within_a_finalizer_is_raised_after_it():
    class Collected:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)  # the handler runs here

    with pytest.raises(stopping.Stop):
        Collected()
        time.sleep(5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_python_dropped_is_raised_at_the_next_point(tmp_path):
    class Referred:
        pass

    def callback(_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)

    referred = Referred()
    reference = weakref.ref(referred, callback)
    del referred
    assert reference() is None
    workdir = Workdir(tmp_path, {})
    with pytest.raises(stopping.Stop):
        workdir.remembered()("a", None, 0, lambda: 1)
    workdir.close()


def process(path, *changes):
    """`python -m gradalign_jax.main`, with Ctrl-C as in a terminal: a shell's background jobs ignore it."""
    program = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "runpy.run_module('gradalign_jax.main', run_name='__main__', alter_sys=True)"
    options = [f"--workdir={path}", "--config.model.hidden=(32,)", "--config.train.epochs=10000", *changes]
    command = [sys.executable, "-c", program, "--config=configs/spheres.py:baseline,smoke", *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_typed_run_says_what_it_saved(tmp_path):
    running = process(tmp_path / "run")
    try:
        while len(list((tmp_path / "run" / "checkpoints").glob("*.json"))) < 1:
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        sent = time.monotonic()
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=30)
        assert time.monotonic() - sent < 10
    finally:
        running.kill()
    assert running.returncode == 143
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith(f"gradalign_jax: stopped by SIGTERM; saved in {tmp_path / 'run'}: training up to step ")
    assert last.endswith("; type the same command again to resume")


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.6])
def test_an_interrupt_of_a_starting_run_is_one_line(seconds, tmp_path):
    starting = process(tmp_path / "run")
    time.sleep(seconds)
    starting.send_signal(signal.SIGINT)
    try:
        _, errors = starting.communicate(timeout=10)
    finally:
        starting.kill()
    assert starting.returncode == 130
    said = [line for line in errors.splitlines() if line and "%|" not in line]  # a fast start shows its progress bar
    assert len(said) == 1, errors
    assert said[0].startswith("gradalign_jax: stopped by SIGINT")
