"""Directories in buckets, by two stand-ins (`buckets`): memory, and a file system whose rename fails."""

import json

import jax
import numpy as np
import pytest

from buckets import install
from configs import mnist, spheres
from generators import lively
from gradalign_jax import data, lease, paths, processes
from gradalign_jax.data import cache
from gradalign_jax.errors import RunError
from gradalign_jax.experiment import artifacts, batches, config_checks
from gradalign_jax.report import __main__ as report
from gradalign_jax.storage import checkpoints, shards, weights
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.tasks import classifier, evaluate, project

SCHEMES = ("gs://", "s3://")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path / "objects")


@pytest.fixture(params=SCHEMES)
def bucket(request):
    return f"{request.param}bucket/runs"


def settings(method="baseline", **changes):
    config = spheres.get_config(f"{method},smoke")
    config.attack.steps, config.devices = 2, 1
    config.evaluate.linf_epsilons = config.evaluate.l2_epsilons = (0.01, 0.4)
    config.evaluate.square_queries = config.evaluate.cw_images = 0
    config.evaluate.images = 60
    if method != "evaluate":
        config.train.epochs, config.train.steps_per_epoch, config.train.log_every = 2, 10, 5
        config.model.hidden, config.validate.epsilons = (16,), (0.01, 0.4)
    config.update_from_flattened_dict(changes)
    return config


def start(path, config, task=classifier):
    workdir = Workdir(path, config.to_dict())
    try:
        return workdir.result() or task.run(config, workdir)
    finally:
        workdir.close()


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Return the directory and the result of a training that was not stopped, on a local file system."""
    path = tmp_path_factory.mktemp("local")
    return path, start(path, settings())


def test_a_stopped_training_resumes_to_the_same_bits_and_is_evaluated(local, bucket, monkeypatch):
    config, (folder, whole) = settings(), local
    save = Workdir.save

    def save_then_die(self, *arguments, **options):
        save(self, *arguments, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "save", save_then_die)
        with pytest.raises(Killed):
            start(f"{bucket}/trained", config)
    workdir = Workdir(f"{bucket}/trained", config.to_dict())
    assert workdir.newest() == 10
    assert "training up to step 10" in workdir.saved()
    workdir.close()
    resumed = start(f"{bucket}/trained", config)
    trained, expected = (weights.read(f"{path}/classifier.safetensors")[0] for path in (f"{bucket}/trained", folder))
    jax.tree.map(np.testing.assert_array_equal, trained, expected)
    same = ("accuracy", "curves", "epsilon_half", "alpha_x", "best")
    assert {key: resumed[key] for key in same} == {key: whole[key] for key in same}
    steps = [line["step"] for line in Workdir(f"{bucket}/trained", config.to_dict()).history() if "epoch" not in line]
    assert steps == [5, 10, 15, 20]

    measured = settings("evaluate", classifier=f"{bucket}/trained")
    config_checks.check(measured)
    outcome = start(f"{bucket}/measured", measured, evaluate)
    assert outcome["accuracy"] == whole["accuracy"]
    assert outcome["evaluated"] == f"{bucket}/trained"

    assert report.main([f"{bucket}/", "--output", f"{bucket}/report"]) == 0
    page = (paths.as_path(bucket) / "report" / "index.html").read_text()
    assert "trained" in page and "measured" in page


def test_a_torn_upload_is_not_believed(bucket):
    config = settings().to_dict()
    tree = {"a": np.arange(5, dtype=np.float32)}
    workdir = Workdir(f"{bucket}/run", config)
    for step in (1, 2, 3):
        workdir.save(step, {"a": tree["a"] + step})
    assert checkpoints.steps(workdir.checkpoints) == [2, 3]
    np.testing.assert_array_equal(workdir.restore(tree)["a"], tree["a"] + 3)
    manifest = workdir.checkpoints / "3.json"
    sealed = manifest.read_bytes()
    manifest.unlink()
    np.testing.assert_array_equal(workdir.restore(tree)["a"], tree["a"] + 2)
    manifest.write_bytes(sealed)
    largest = max(json.loads(sealed)["files"], key=lambda name: len((workdir.checkpoints / "3" / name).read_bytes()))
    part = workdir.checkpoints / "3" / largest
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    np.testing.assert_array_equal(workdir.restore(tree)["a"], tree["a"] + 2)
    part.unlink()
    np.testing.assert_array_equal(workdir.restore(tree)["a"], tree["a"] + 2)
    part.write_bytes(whole)
    np.testing.assert_array_equal(workdir.restore(tree)["a"], tree["a"] + 3)
    for step in (2, 3):
        (workdir.checkpoints / f"{step}.json").write_bytes(b"{")
    with pytest.raises(RunError, match="every checkpoint in"):
        workdir.restore(tree)
    weights.write(workdir.path / "w.safetensors", tree)
    (workdir.path / "w.safetensors").write_bytes((workdir.path / "w.safetensors").read_bytes()[:-1])
    with pytest.raises(RunError, match="damaged"):
        weights.read(workdir.path / "w.safetensors")
    with pytest.raises(RunError, match="is missing"):
        weights.read(f"{bucket}/nothing.safetensors")


def test_another_config_is_refused(bucket):
    Workdir(f"{bucket}/run", settings().to_dict()).close()
    with pytest.raises(RunError, match="another config: seed"):
        Workdir(f"{bucket}/run", settings(seed=7).to_dict())


def test_a_store_is_written_resumed_and_read(bucket, tmp_path, monkeypatch):
    label = np.arange(4, dtype=np.int32) % 2
    image = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1)).astype(np.uint8)
    splits = {
        name: data.Split(image, label, np.arange(4, dtype=np.int32) + 10 * place)
        for place, name in enumerate(("train", "validation", "test"))
    }
    dataset = data.Dataset("mnist", 2, (32, 32, 1), splits)
    monkeypatch.setattr(batches, "load", lambda config: dataset)
    tree = lively(2, 1, width=8)[1]
    described = {"num_classes": 2, "channels": 1, "width": 8, "latent_dim": 128, "dataset": "mnist"}
    weights.write(paths.as_path(f"{bucket}/gan") / artifacts.GENERATOR, {"raw": tree, "ema": tree}, **described)
    config = mnist.get_config("project,smoke")
    config.project.generator, config.devices, config.data.limit = f"{bucket}/gan", 1, 0
    config.project.steps, config.project.block, config.project.splits = (3, 2), 4, ("train", "test")
    config_checks.check(config)
    local = start(tmp_path / "whole", config, project)
    write = shards.Store.write

    def write_then_die(self, number, **arrays):
        write(self, number, **arrays)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shards.Store, "write", write_then_die)
        with pytest.raises(Killed):
            start(f"{bucket}/store", config, project)
    first = paths.as_path(f"{bucket}/store/store/000000.safetensors")
    assert not (first.parent / "000001.safetensors").exists()
    first.write_bytes(first.read_bytes()[:-100])  # torn: computed again
    outcome = start(f"{bucket}/store", config, project)
    assert outcome["loss"] == local["loss"]
    for file in (tmp_path / "whole" / "store").glob("*.safetensors"):
        assert file.read_bytes() == (first.parent / file.name).read_bytes()
    found = artifacts.load_projections(f"{bucket}/store", dataset)
    assert found.covered.all()


def test_the_cache_of_data(bucket):
    made = []

    def build():
        made.append(1)
        return {"x": np.arange(3)}

    for _ in range(2):
        np.testing.assert_array_equal(cache.fetch(f"{bucket}/cache", "key", {"a": 1}, build)["x"], np.arange(3))
    assert len(made) == 1


def test_a_lease_has_one_holder_until_it_expires(bucket):
    path = paths.as_path(f"{bucket}/000001.lease")
    held = lease.claim(path, 60)
    assert lease.claim(path, 60) is None
    assert held.renew()
    assert 0 <= lease.age(path) < 30
    other = lease.claim(path, -1.0)  # every lease is older
    assert other is not None
    assert not held.renew()
    held.release()  # no longer its own
    assert lease.claim(path, 60) is None
    other.release()
    assert not path.exists()


def test_a_run_of_several_processes_is_refused(bucket, monkeypatch):
    processes.check_shared(bucket)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    processes.check_shared("runs/local")
    with pytest.raises(RunError, match="is in a bucket: a run of several processes needs a shared file system"):
        processes.check_shared(bucket)


def test_a_missing_package_is_named(monkeypatch):
    import fsspec

    def missing(protocol):
        raise ImportError(protocol)

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(RunError, match=r"gs://b/run needs the package gcsfs: pip install 'gradalign_jax\[cloud\]'"):
        paths.as_path("gs://b/run")


def test_names():
    assert str(paths.absolute("gs://b/run/")) == "gs://b/run"
    assert paths.real("s3://b/run/") == "s3://b/run"
    assert not paths.is_folder("gs://b/nothing")
    assert paths.absolute("run").is_absolute()
