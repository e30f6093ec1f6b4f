"""Projection runs that fill one store together: each shard by one process; a killed one's shard by another."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from configs import squares32
from generators import lively
from gradalign_jax import data, lease
from gradalign_jax.errors import RunError
from gradalign_jax.experiment import artifacts, batches, config_checks, latents
from gradalign_jax.storage import shards, weights
from gradalign_jax.storage.atomic import create
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.tasks import project

ROOT = Path(__file__).resolve().parents[1]
SHARDS = 6

# One process: logs each shard that it writes; with "hang", stops for good before it writes its second one.
_PROCESS = f"""
import os, sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from gradalign_jax.experiment import latents
from gradalign_jax.storage.shards import Store
from test_shared_store import fill
folder, name, hang = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "hang"
latents.EXPIRY = 6.0
write, share, written = Store.write, latents.Latents.share, []

def logged(self, number, **arrays):
    if hang and written:
        (folder / "hung").write_text(str(number))
        time.sleep(1000)
    write(self, number, **arrays)
    written.append(number)
    with open(folder / "log", "a") as log:
        log.write(f"{{name}} {{number}}\\n")
    time.sleep(0 if hang else 0.5)

def together(self, missing):
    (folder / f"ready_{{name}}").touch()
    while len(list(folder.glob("ready_*"))) < 2:
        time.sleep(0.02)
    share(self, missing)

Store.write, latents.Latents.share = logged, together
fill(folder, name, str(folder / "shared"))
"""


def load(config):
    """Return a small data set in place of the configured one."""
    rng, splits = np.random.default_rng(0), {}
    for start, name in enumerate(("train", "validation", "test")):
        label = np.arange(2 * SHARDS, dtype=np.int32) % 2
        image = rng.integers(0, 256, (2 * SHARDS, 32, 32, 1)).astype(np.uint8)
        splits[name] = data.Split(image, label, np.arange(2 * SHARDS, dtype=np.int32) + 100 * start)
    return data.Dataset("squares32", 2, (32, 32, 1), splits)


def fill(folder, name, shared=""):
    """Project as the entry point does; return the result."""
    batches.load = load
    config = squares32.get_config("project,smoke")
    config.project.generator, config.project.shared = str(folder / "gan"), shared
    config.project.steps, config.project.block, config.devices = (3, 2), 4, 1
    config.project.splits, config.project.solver = ("test",), "fast"
    config_checks.check(config)
    workdir = Workdir(folder / name, config.to_dict())
    try:
        return workdir.result() or project.run(config, workdir)
    finally:
        workdir.close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with a finished gan run; `batches.load` is put back at the end."""
    monkeypatch.setattr(batches, "load", load)
    tree = lively(2, 1, width=8)[1]
    described = {"num_classes": 2, "channels": 1, "width": 8, "latent_dim": 128, "dataset": "squares32"}
    (tmp_path / "gan").mkdir()
    weights.write(tmp_path / "gan" / artifacts.GENERATOR, {"raw": tree, "ema": tree}, **described)
    return tmp_path


def test_two_processes_of_which_one_is_killed_compute_every_shard_once(folder):
    options = {"stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([sys.executable, "-c", _PROCESS, str(folder), name, name], **options)
        for name in ("hang", "whole")
    ]
    try:
        while not (folder / "hung").exists():
            assert all(process.poll() is None for process in started), [p.communicate()[1][-2000:] for p in started]
            time.sleep(0.05)
        started[0].kill()
        alone = fill(folder, "alone")
        error = started[1].communicate(timeout=100)[1]
        assert started[1].returncode == 0, error[-2000:]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    written = dict(reversed(line.split()) for line in (folder / "log").read_text().splitlines())
    assert len((folder / "log").read_text().splitlines()) == len(written) == SHARDS  # each once
    assert list(written.values()).count("hang") == 1
    assert written[(folder / "hung").read_text()] == "whole"  # taken over
    store = folder / "shared" / "store"
    assert not list(store.glob("*.lease*"))
    for file in (folder / "alone" / "store").glob("*.safetensors"):
        assert file.read_bytes() == (store / file.name).read_bytes()
    assert len(list(store.glob("*.safetensors"))) == SHARDS
    later = fill(folder, "later", str(folder / "shared"))  # nothing is left to do
    assert later["loss"] == alone["loss"]
    assert later["traces"] == 0
    assert artifacts.load_projections(folder / "shared", load(None)).covered.all()


def test_a_shard_that_another_has_written_since_is_not_computed_again(folder, monkeypatch):
    fill(folder, "first", str(folder / "shared"))
    written = []
    monkeypatch.setattr(shards.Store, "write", lambda self, number, **arrays: written.append(number))
    answers = [np.arange(4), np.zeros(0, int)]  # the first as of before the first run
    monkeypatch.setattr(latents.Latents, "missing", lambda self: answers.pop(0))
    fill(folder, "second", str(folder / "shared"))
    assert not written


def test_one_run_of_several_processes_is_refused(folder, monkeypatch):
    monkeypatch.setattr(project.jax, "process_count", lambda: 2)
    with pytest.raises(RunError, match=r"config\.project\.shared is for runs of one process"):
        fill(folder, "run", str(folder / "shared"))


def test_pairs_that_another_process_wrote_are_not_written_twice(folder):
    """As a process does that was stopped for longer than its lease, and whose shard was taken over."""
    fill(folder, "first", str(folder / "shared"))
    store = shards.find(folder / "shared" / "store")
    before = (store.folder / "000000.safetensors").read_bytes()
    held = store.shard(0)
    written = []

    def again(self, number, **arrays):
        written.append(number)
        weights.write(self.folder / f"{number:06d}.safetensors", arrays, shard=number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.Store, "write", again)
        whole = np.arange(len(held["z"]))
        patch.setattr(project.Latents, "missing", lambda self: whole[: 0 if written else None])
        patch.setattr(project.Latents, "held", lambda self, number: np.zeros(0, int))  # as of before the takeover
        fill(folder, "second", str(folder / "shared"))
    assert written == [0]
    assert (store.folder / "000000.safetensors").read_bytes() == before


def test_a_lost_lease_writes_nothing(folder, monkeypatch):
    held = lease.Lease.held

    @contextlib.contextmanager
    def lost_once(self, expiry):
        with held(self, expiry) as mine:
            if not list(folder.glob("shared/store/*.safetensors")) and not lost:
                lost.append(self.path)
                self.path.unlink()
            yield mine

    lost, written, write = [], [], shards.Store.write

    def logged(self, number, **arrays):
        written.append(number)
        write(self, number, **arrays)

    monkeypatch.setattr(lease.Lease, "held", lost_once)
    monkeypatch.setattr(shards.Store, "write", logged)
    fill(folder, "run", str(folder / "shared"))
    assert lost[0].name == "000000.lease"
    assert sorted(written) == list(range(SHARDS))
    assert written[-1] == 0  # not when its lease was lost, but afterwards


def test_of_two_new_stores_one_counts(folder):
    identity = {"rows": 24, "shard": 4, "steps": [3, 2]}
    first = shards.claim(folder / "store", identity, shared=True)
    second = shards.claim(folder / "store", identity | {"shard": 8}, shared=True)  # a card with more memory
    assert first.identity == second.identity
    create(folder / "store" / "identity.json", "too late")
    assert shards.find(folder / "store").identity == first.identity
    with pytest.raises(RunError, match="steps"):
        shards.claim(folder / "store", identity | {"steps": [5, 2]}, shared=True)


def test_a_run_s_own_directory_is_not_shared(folder):
    fill(folder, "own")
    with pytest.raises(RunError, match="is a run's own directory"):
        fill(folder, "other", str(folder / "own"))
